"""Flax modules: what a block is built from."""
