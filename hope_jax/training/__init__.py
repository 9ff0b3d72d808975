"""Training: data, sharding, steps, checkpoints and the loop around them."""
