"""Readers of public data sets: one small file each, from its true layout to rows of the table."""

# The names on the command line; `registry` has the readers, which are slow to import.
NAMES = (
    "sop",
    "cars",
    "cub",
    "inshop",
    "aliproducts",
    "rp2k",
    "products10k",
    "met",
    "hnm",
    "finefood",
    "shopee",
    "inaturalist_2021",
    "food101",
    "glr",
)
