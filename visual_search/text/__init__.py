"""Image and text in one space: towers, training, text search, zero-shot classification."""
