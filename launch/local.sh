#!/usr/bin/env bash
# Installs the package and trains the quickstart on this machine; arguments go to the trainer:
#   bash launch/local.sh --config.steps=50
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" train
exec hope train --config=experiments/quickstart.py --workdir=runs/quickstart "$@"
