"""From ranks to scores: metrics, retrieval tasks, comparisons of models, and their pages."""
