# Sourced by the other scripts: enters $VENV (default .venv), made with $PYTHON (default python3),
# and installs the package with the extras named in $1.
set -euo pipefail
# A step's buffers come fresh from the kernel. In pages of 2 MB instead of 4 KB a step on a CPU is some
# percent faster where memory is large, a quarter where memories are small (glibc 2.35 or newer).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
# shellcheck disable=SC1091
source "$VENV/bin/activate"
python -m pip install --quiet --upgrade pip
python -m pip install --quiet --editable ".[$1]"
