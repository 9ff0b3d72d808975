"""Suites: the data of a benchmark, and how what a model says of it is scored."""
