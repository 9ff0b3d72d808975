import subprocess
import sys

import pytest

import hope_jax


@pytest.mark.parametrize("name", [name for name in hope_jax.__all__])
def test_every_public_name_is_there(name):
    assert getattr(hope_jax, name) is not None
    assert name in dir(hope_jax)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="'hope_jax' has no attribute 'Hop'; it has Lang"):
        hope_jax.Hop  # noqa: B018


@pytest.mark.parametrize("module", ["hope_jax", "hope_jax.optim", "hope_jax.memory"])
def test_imports_without_flax(module):
    script = f"import sys, {module}; sys.exit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
