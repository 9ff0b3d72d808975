#!/usr/bin/env bash
# Installs the package with its test tools, then lints, type-checks and tests; arguments go to pytest:
#   bash launch/test.sh -m "not slow"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
ruff check .
ruff format --check .
mypy
exec python -m pytest --durations=15 "$@"
