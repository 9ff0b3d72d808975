#!/usr/bin/env bash
# Installs the package with its test tools, then lints, type-checks and tests; arguments go to the last of these:
#   bash launch/test.sh -m "not slow"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
ruff check .
ruff format --check .
mypy
python -m pytest hope_jax
exec python -m pytest tests --durations=15 "$@"
