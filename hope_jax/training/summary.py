"""What a run is, in a few lines before it begins."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hope_jax.counts import count
from hope_jax.data.token_stream import TokenStream
from hope_jax.models import LanguageModelConfig
from hope_jax.models.own_layer import is_own
from hope_jax.optim.matrices import leaf_name
from hope_jax.runs.origin import Origin, said_of
from hope_jax.runs.run_config import Change
from hope_jax.training.optimizer import make_schedule, split_leaves

# Parts of a model by the path of a parameter; the first pattern that is found counts.
_PARTS = (
    ("embedding", r"^embedding"),
    ("head", r"^unembedding"),
    ("norms", r"norm/"),
    ("levels (MLPs)", r"continuum/|^log_step|^expert|level_shares"),
    ("sequence layers", r"^blocks/"),
)

# What the learning rate of a step depends on.
_SCHEDULE = (
    "steps",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.final_fraction",
)


def summarize_run(
    config: ConfigDict, params: Any, streams: Sequence[TokenStream], mesh: Mesh, workdir: str
) -> list[str]:
    """Lines that say what is to be trained, on what, how, and where it is written.

    Args:
      config: whole, of the run.
      params: shapes of the model's parameters.
      streams: the part of the corpus to learn from, and the one to validate on.
      mesh: the devices.
      workdir: folder of the run.
    """
    tokens = config.data.batch_size * config.data.sequence_length
    every = f"a checkpoint every {count(config.checkpoint.every, 'step')}"
    rows = {
        "model": _model(LanguageModelConfig.from_config_dict(config.model)),
        "parameters": _parameters(params),
        "corpus": _corpus(streams, config.steps * tokens),
        "devices": _devices(mesh),
        "optimiser": _optimizer(config, params),
        "steps": f"{config.steps:,} of {tokens:,} tokens ({count(config.data.batch_size, 'sequence')} of "
        f"{config.data.sequence_length}), {config.steps * tokens:,} in all",
        "folder": f"{workdir} ({every}, {_kept(config.checkpoint)} kept)",
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {text}" for name, text in rows.items()]


def summarize_changes(
    config: ConfigDict, workdir: str, step: int, changes: Sequence[Change], origin: Origin | None
) -> list[str]:
    """Lines that say from where a run goes on, and what has changed.

    Args:
      config: whole, of the run.
      workdir: its folder.
      step: that it has taken.
      changes: settings that differ from before, with both values.
      origin: where its first weights came from, if from another run.
    """
    begun = "" if origin is None else f" (begun from {said_of(origin)})"
    lines = [f"continuing {workdir} from step {step}{begun}"]
    if changes:
        said = ", ".join(f"{key} {new!r} in place of {old!r}" for key, old, new in changes)
        lines.append(f"with other settings: {said}")
    if 0 < step < config.steps and any(key in _SCHEDULE for key, *_ in changes):
        before = {key: config.optimizer[key] for key in config.optimizer}
        steps = config.steps
        for key, old, _ in changes:
            before[key.removeprefix("optimizer.")] = old
            steps = old if key == "steps" else steps
        was = float(make_schedule(before, steps)(step - 1))
        now = float(make_schedule(config.optimizer, config.steps)(step))
        lines.append(
            f"learning rate: {was:.3g} at step {step} as it was, {now:.3g} at step {step + 1}"
        )
    return lines


def _kept(checkpoint: ConfigDict) -> str:
    kept = [f"the newest {checkpoint.keep}"]
    kept += [f"all of every {checkpoint.keep_every:,} steps"] * bool(checkpoint.keep_every)
    kept += [f"the best {checkpoint.keep_best}"] * bool(checkpoint.keep_best)
    return ", ".join(kept)


def parameters_by_part(params: Any) -> dict[str, int]:
    """Number of parameters of each part of a model, in the order in which a token meets them."""
    found: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = leaf_name(path)
        part = next((part for part, pattern in _PARTS if re.search(pattern, name)), "others")
        found[part] = found.get(part, 0) + math.prod(leaf.shape)
    order = ["embedding", "sequence layers", "levels (MLPs)", "norms", "head", "others"]
    return {part: found[part] for part in order if part in found}


def _model(model: LanguageModelConfig) -> str:
    used = [str(name) for name in model.pattern or (model.sequence_layer,)]
    layer = " + ".join(used)
    if any(name != "attention" and not is_own(name) for name in used):
        layer += f" ({model.titans_config.network} memories)"
    levels = count(model.cms_levels, "level")
    if model.adapting_blocks:
        levels += f" (those of the last {count(model.adapting_blocks, 'block')} learn in context)"
    return (
        f"{layer}, width {model.width}, {count(model.num_layers, 'block')}, "
        f"{count(model.num_heads, 'head')}, {levels} of {model.mlp_width}, {model.dtype}"
    )


def _parameters(params: Any) -> str:
    parts = parameters_by_part(params)
    said = ", ".join(f"{part} {number:,}" for part, number in parts.items())
    return f"{sum(parts.values()):,}: {said}"


def _corpus(streams: Sequence[TokenStream], tokens: int) -> str:
    learn, validate = (
        f"{len(stream.tokens):,} tokens {{}} ({count(len(stream.starts), 'document')}, "
        f"{count(stream.num_bytes, 'byte')})"
        for stream in streams
    )
    passes = tokens / len(streams[0].tokens)
    return f"{learn.format('to learn from')}, {passes:.2g} times over; " + validate.format(
        "to validate on"
    )


def _devices(mesh: Mesh) -> str:
    kind = mesh.devices.flat[0].device_kind
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    hosts = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} {kind}{hosts}; mesh {axes}"


def _optimizer(config: ConfigDict, params: Any) -> str:
    optimizer: Mapping[str, Any] = config.optimizer
    last = float(make_schedule(optimizer, config.steps)(config.steps - 1))
    peak = f"{optimizer['learning_rate']:g}"
    warmup = optimizer["warmup_steps"]
    rate = f"rate rising to {peak} in {count(warmup, 'step')}" if warmup else f"rate from {peak}"
    rate += f", falling to {last:.2g}"
    groups = [
        f"{count(len(leaves), 'tensor')} ({sum(leaves):,} parameters) {how}"
        for how, leaves in split_leaves(optimizer["name"], params).items()
    ]
    return f"{optimizer['name']}, {rate}; {', '.join(groups)}"
