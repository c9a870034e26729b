"""From images to ranks, within a time limit: embed, search, re-rank; and the export for it."""
