"""The five steps from Amazon reviews to a table of training pairs."""
