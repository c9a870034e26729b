"""From tables and image files to batches of pixels: reading, checking, augmenting, sampling."""
