# shellcheck shell=bash
# Sourced by the other scripts: enters $VENV (default .venv), made with $PYTHON (default python3),
# and installs the package with the extras named in $1.
set -euo pipefail
# A step's buffers come fresh from the kernel, on a CPU sooner in pages of 2 MB than of 4 KB (glibc 2.35 or
# newer); python experiments/benchmarks/memory.py titans_pytorch shows the difference.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
# shellcheck disable=SC1091
source "$VENV/bin/activate"
python -m pip install --quiet --upgrade pip
python -m pip install --quiet --editable ".[$1]"
