#!/usr/bin/env bash
# Installs the package with its test tools, then lints, type-checks, makes the docs and tests; arguments go to the last of these:
#   bash launch/test.sh -m "not slow"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
# Transformers, with which imported checkpoints and the harness are compared, runs on PyTorch, whose wheel without CUDA
# no line of setup.cfg can name. Where there is none, those tests are skipped.
python -c "import torch, accelerate" 2>/dev/null || python -m pip install --quiet --retries 1 --timeout 60 \
    --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" accelerate ||
    echo "no PyTorch without CUDA at hand: imported checkpoints are compared with NumPy only"
ruff check .
shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh launch/slurm.sbatch .ci/run
ruff format --check .
# Beside the tests, which leave a core idle where one of them is long; all are awaited, and each must pass.
mypy &
others=($!)
# What the notebooks compile outlives the checkout, as what the tests do.
JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/hope_jax/programs}" \
    sphinx-build --fail-on-warning --quiet docs docs/_build/html &
others+=($!)
code=0
python -m pytest tests hope_jax -n auto --dist worksteal --durations=15 "$@" || code=$?
for other in "${others[@]}"; do
    wait "$other" || code=$?
done
exit "$code"
