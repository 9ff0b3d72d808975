"""Comparisons: what is trained with what settings and seeds, how often at once, and the table of it."""
