"""Data sets that the repository carries."""
