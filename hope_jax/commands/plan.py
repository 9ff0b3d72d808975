r"""Tells what a run needs and how fast it should be, by compiling its step and running nothing.

    hope plan --config=experiments/language_model.py:hope-60m --topology=v5p:2x2x1 \
        --config.mesh.fsdp=4 --compare=experiments/language_model.py:transformer-60m

The step is the trainer's own, for TPUs that are not there (v5e, v5p, v6e, by their compiler, which
hope_jax[tpu] brings) or for the devices of this machine. Neither data nor tokenizer is read. Settings
that are changed are changed in both configs. It takes one to some minutes and as many GB. Ends with
code 1 if a step does not fit; then it compiles with what may mend that, until it does.
"""

import sys
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, define_config_flags, read_config
from hope_jax.exit_codes import FAILED
from hope_jax.planning.memory import remedies
from hope_jax.planning.plan import Plan, make_plan
from hope_jax.planning.table import as_markdown, memory_of, notes
from hope_jax.planning.topology import LOCAL, Devices, find_devices
from hope_jax.training.assembly import assemble
from hope_jax.training.config import RunConfig, whole_config

UNEXPECTED = "settings look like --config.mesh.fsdp=4"


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string(
        "topology", LOCAL, "Chips and how they lie, such as v5e:4x4, v5p:2x2x1, v6e:2x2; or local."
    )
    flags.DEFINE_string("compare", None, "Another config, to be planned beside it.")


def run() -> int | None:
    """Runs the command; the exit code where that is not 0."""
    given = flags.FLAGS
    if given.config is None:
        raise ValueError("--config=FILE.py is missing: the run that is to be planned")
    configs = {
        _name(spec): whole_config(change_settings(RunConfig, read_config(spec), given.set))
        for spec in (given.config, given.compare)
        if spec is not None
    }
    devices = find_devices(given.topology)
    assemblies = {name: assemble(config, devices.devices) for name, config in configs.items()}
    plans = {}
    for name, config in configs.items():
        _say(f"compiling {name} for {given.topology} ...")
        plans[name] = make_plan(config, devices, assemblies[name])
    print(as_markdown(plans), flush=True)
    for name, plan in plans.items():
        for line in notes(plan):
            print(f"{name}: {line}.", flush=True)
    failed = {name: plan for name, plan in plans.items() if not plan.memory.fits}
    for name, plan in failed.items():
        print(f"{name}: {_mend(plan, devices)}.", flush=True)
    return FAILED if failed else None


def _mend(plan: Plan, devices: Devices) -> str:
    """Which settings make a step fit, as the compiler says it with them."""
    for remedy in remedies(plan.config, plan.memory, plan.mesh):
        changed = " ".join(f"--config.{key}={value}" for key, value in remedy.settings.items())
        _say(f"compiling with {changed} ...")
        config = _with(plan.config, remedy.settings)
        try:
            tried = make_plan(config, devices, assemble(config, devices.devices))
        except ValueError:  # a mesh that does not divide the model
            continue
        if tried.memory.fits:
            return f"{changed} fits, {memory_of(tried)}: it {remedy.how}"
    return (
        "no setting of mesh, model.remat and accumulate makes it fit on so many chips; give it more of "
        "them, all in mesh.fsdp, or a smaller model"
    )


def _with(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    texts = [f"{key}={value}" for key, value in settings.items()]
    return whole_config(change_settings(RunConfig, config, texts))


def _name(spec: str) -> str:
    """A config's name in the table: its variant, or its file where there is none."""
    path, _, variant = spec.partition(":")
    return variant or path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
