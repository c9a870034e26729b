"""The builder of the demo catalogue: renders product models to seller and user images."""
