"""Eight simulated devices, for the tests of sharded updates; set before any backend starts."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
