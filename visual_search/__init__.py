"""Train image embedders and rank gallery images for a user's photo."""

__version__ = "0.1.0"
