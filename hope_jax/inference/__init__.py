"""Models in use: reading, scoring, sampling, what they have read in files, levels looked at."""
