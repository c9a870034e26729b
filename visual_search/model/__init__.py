"""From pixels to embeddings: backbones, pooling, projections, and their weights on disk."""
