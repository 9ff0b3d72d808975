"""Training: optimisers, sharding, steps, processes and the loop around them."""
