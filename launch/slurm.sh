#!/usr/bin/env bash
# Trains on GPUs of a Slurm cluster: submits launch/slurm.sbatch, one process for each GPU.
#
#   bash launch/slurm.sh --nodes=4 --gpus=8 --partition=PARTITION --time=24:00:00 -- \
#       --config=experiments/language_model.py:hope-760m --workdir=/shared/runs/760m
#
# The job is queued again when its time is over or it is preempted, and the run goes on. Install the
# package beforehand, in an environment that all nodes see: launch/gpu.sh install.
# Flags:
#   --nodes=1 --gpus=8       machines, and GPUs of each
#   --name=hope              of the job
#   --partition=PARTITION --account=ACCOUNT --time=24:00:00   as sbatch takes them
#   --venv=FOLDER            the environment; .venv of this checkout if not given
#   --logs=FOLDER            of what it prints; runs/logs of this checkout if not given
#   --dry-run                shows the commands, and runs none
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
nodes=1 gpus=8 name=hope partition='' account='' time=24:00:00 venv="$ROOT/.venv" logs="$ROOT/runs/logs"
read_flags "nodes gpus name partition account time venv logs" "" "$@"
need_training
more=()
[ -z "$partition" ] || more+=(--partition="$partition")
[ -z "$account" ] || more+=(--account="$account")
run mkdir -p "$logs"
run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" \
    --time="$time" --output="$logs/%x-%j.log" --chdir="$ROOT" "${more[@]}" \
    "$ROOT/launch/slurm.sbatch" "$venv" "${TRAIN[@]}"
