"""Text to train on: corpora, tokenizers, token files, windows and batches, n-gram baselines."""
