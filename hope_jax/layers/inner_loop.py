"""The name of what learns while a model reads, by which its share of a program is told."""

INNER_LOOP = "inner_loop"  # a `jax.named_scope` around memories, and around levels' learning
