"""Settings that every test shares: a CPU that looks like eight devices, and quick compilation."""

import os
import pathlib

# Compiled programs outlive the checkout; commands that tests start find them too.
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "hope_jax" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test here is compilation: a third less of it, for code that runs for milliseconds.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# Scripts, which find each other as neighbours.
collect_ignore = ["break_on_purpose.py", "faults_on_purpose.py"]


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
