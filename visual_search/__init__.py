"""Train image embedders and rank gallery photos for a user's photo."""
