"""Settings that every test shares: a CPU that looks like eight devices, and quick compilation."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test here is compilation: a third less of it, for code that runs for milliseconds.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Frees each module's compiled programs: with all of them kept, the process runs out of mappings."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Runs a test with float64 arrays."""
    with jax.enable_x64(True):
        yield
