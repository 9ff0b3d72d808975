#!/usr/bin/env bash
# Makes the documentation's site in docs/_build/html; a warning is an error:
#   bash launch/docs.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" train,docs
exec sphinx-build --fail-on-warning --quiet docs docs/_build/html
