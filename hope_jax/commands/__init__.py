"""The commands of `hope`: one file each, and `main.py`, which has their table."""
