"""`hope_jax.optim` must cost nothing but jax, optax and chex."""

import subprocess
import sys

PROGRAM = """
import sys
import chex, jax, optax
before = set(sys.modules)
from hope_jax.optim import m3
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""


def test_importing_m3_loads_no_package_but_jax_optax_and_chex():
    loaded = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded == ["hope_jax"]
