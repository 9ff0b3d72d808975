#!/usr/bin/env bash
# Trains on one machine with GPUs; all that it has are devices of one process.
#
#   bash launch/gpu.sh install run -- \
#       --config=experiments/language_model.py:hope-60m --workdir=runs/60m --config.mesh.fsdp=8
#
# Verbs, in the order given:
#   install  the package with CUDA's libraries, in an environment; the driver must be there
#   devices  shows what JAX finds
#   run      hope train with what stands behind --; again where it can go on by itself (launch/exit_codes.sh)
# Flags:
#   --cuda=13        or 12, as the driver can
#   --venv=FOLDER    the environment; .venv of this checkout if not given
#   --python=python3 that makes it, 3.11 or newer
#   --dry-run        shows the commands, and runs none
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
cuda=13 venv="$ROOT/.venv" python=python3
read_flags "cuda venv python" "install devices run" "$@"
[ ${#VERBS[@]} -gt 0 ] || fail "nothing to do; see --help"

do_install() {
    run "$python" -m venv "$venv"
    run "$venv/bin/python" -m pip install --quiet --upgrade pip
    run "$venv/bin/python" -m pip install --quiet --editable "${ROOT}[train,cuda$cuda]"
}

do_devices() {
    run "$venv/bin/python" -c "import jax; print(jax.devices())"
}

do_run() {
    need_training
    local code=0
    while :; do
        code=0
        run "$venv/bin/hope" train "${TRAIN[@]}" || code=$?
        goes_on "$code" || exit "$code"
        echo "ended with code $code; going on" >&2
        sleep 5
    done
}

for verb in "${VERBS[@]}"; do "do_$verb"; done
