"""The embedded data set: a rendered catalogue of real product models, and its builder."""
