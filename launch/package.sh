#!/usr/bin/env bash
# Builds the source distribution, of that the wheel, installs the wheel alone into an environment of its
# own, and uses it there:
#   bash launch/package.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
unset PYTHONPATH # with the checkout on it, pip takes that for an installation
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python -m build --outdir "$folder" . >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
python -m venv "$folder/alone"
"$folder/alone/bin/python" -m pip install --quiet "$folder"/*.whl
cd "$folder" # outside of the checkout, which would be imported in the package's place
alone/bin/hope >/dev/null
alone/bin/python - <<'END'
import importlib.util

import hope_jax
import hope_jax.memory
import jax.numpy as jnp
from hope_jax.optim import m3

m3(1e-3).init({"kernel": jnp.ones((4, 4))})
assert importlib.util.find_spec("flax") is None, "the base installation has become heavier"
print(f"hope_jax {hope_jax.__version__} is built and installs")
END
