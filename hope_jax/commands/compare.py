r"""Trains variants of a config one after the other, and writes one table and one figure.

    hope compare --config=experiments/ablations.py:hope,no_dgd --workdir=runs/ablations \
        --seeds=3 --learning_rates=2e-3,4e-3,8e-3 --set=steps=300 --set=data.batch_size=4

Every variant sees the same tokens with the same seeds, at the learning rate that is best for it: all
are tried with the first seed, by validation loss. Losses in the table are of the runs that did not
diverge; its last column says how many did, at any rate. Run again, it goes on where it stopped. The
table, `table.md`, and the figure, `losses.png`, are written anew after every run.
"""

import contextlib
import dataclasses
import io
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hope_jax.commands.config import change_settings, define_set_flag, read_config
from hope_jax.commands.exit_codes import SAVED
from hope_jax.data.whole_file import write_whole
from hope_jax.data.whole_folder import check_writable
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.flops import count_flops
from hope_jax.models.parameter_count import parameter_count
from hope_jax.runs.metrics import read_metrics
from hope_jax.training.config import RunConfig, whole_config
from hope_jax.training.loop import NonFiniteLossError, train


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
      variant: name of the row.
      rate: learning rate.
      seed: of weights and data.
      loss: on the validation part, in nats per token; infinite if training diverged.
      curve: steps and training losses.
      tokens_per_second: median over the run.
    """

    variant: str
    rate: float
    seed: int
    loss: float
    curve: list[tuple[int, float]]
    tokens_per_second: float


class Cost(NamedTuple):
    """What a variant costs, counted beforehand.

    Attributes:
      parameters: number of them.
      flops: of a training step, for each token.
      state_bytes: of one sequence.
    """

    parameters: int
    flops: float
    state_bytes: int


def load_configs(spec: str, changes: Sequence[str]) -> dict[str, ConfigDict]:
    """The configs of `file.py:variant,variant,...`.

    Args:
      spec: path of a file with `get_config(variant)`, a colon, and variants.
      changes: settings of all of them, such as `steps=300`.

    Raises:
      ValueError: if there is no such file, no variant, or no such setting, or if two variants are the
        same.
    """
    path, _, names = spec.partition(":")
    if not Path(path).is_file() or not names:
        raise ValueError(f"--config={spec} must be a file and its variants, file.py:one,two")
    configs: dict[str, ConfigDict] = {}
    for name in names.split(","):
        config = whole_config(
            change_settings(RunConfig, read_config(f"{path}:{name}"), changes), print
        )
        for other, theirs in configs.items():
            if other == name or config == theirs:
                raise ValueError(
                    f"--config: variants {other!r} and {name!r} are the same; leave one out"
                )
        configs[name] = config
    return configs


def compare(
    configs: Mapping[str, ConfigDict], workdir: Path, seeds: int, rates: Sequence[float]
) -> list[Run]:
    """Trains what has not been trained yet, and writes table and figure.

    Args:
      configs: by name of the variant.
      workdir: folder of all runs.
      seeds: how many, counted up from each config's own.
      rates: learning rates that are tried.

    Returns:
      All runs, in order.
    """
    runs: list[Run] = []
    costs = {variant: _cost(config) for variant, config in configs.items()}
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # Seeds of a variant run the same programs.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "programs"))

    def take(variant: str, rate: float, seed: int) -> Run:
        done = _run(variant, configs[variant], workdir, rate, seed)
        runs.append(done)
        _write(costs, runs, workdir)
        return done

    for variant in configs:
        best = _best_rate([take(variant, rate, 0) for rate in rates])
        for seed in range(1, seeds):
            take(variant, best, seed)
    return runs


def _run(variant: str, config: ConfigDict, workdir: Path, rate: float, seed: int) -> Run:
    folder = workdir / variant / f"rate_{rate:g}" / f"seed_{seed}"
    config = ConfigDict(config.to_dict())
    config.optimizer.learning_rate = rate
    config.seed += seed
    config = whole_config(config)
    wanted = json.loads(config.to_json_best_effort())
    result = folder / "result.json"
    if result.is_file():
        kept = json.loads(result.read_text())
        if whole_config(kept["config"]) != whole_config(wanted):
            raise ValueError(
                f"{folder} holds a run with other settings; give the same to go on, or another "
                f"--workdir"
            )
    else:
        print(f"{variant}, learning rate {rate:g}, seed {seed}", flush=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                done = train(config, str(folder))
            if done is None:
                sys.exit(SAVED)
            loss = done["validation_loss"]
        except NonFiniteLossError as error:
            print(f"  diverged: {error}", flush=True)
            loss = float("inf")
        kept = {"loss": loss, "config": wanted}
        write_whole(result, json.dumps(kept) + "\n")
        print(f"  validation loss {loss:.4f}", flush=True)
        jax.clear_caches()
    lines = [line for line in read_metrics(str(folder)) if "loss" in line]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    curve = [(int(line["step"]), line["loss"]) for line in lines]
    speed = statistics.median(speeds) if speeds else float("nan")
    return Run(variant, rate, seed, kept["loss"], curve, speed)


def _best_rate(runs: Sequence[Run]) -> float:
    """That of the lowest loss with the first seed, with which all rates are tried."""
    return min((run for run in runs if run.seed == 0), key=lambda run: run.loss).rate


def _write(costs: Mapping[str, Cost], runs: Sequence[Run], workdir: Path) -> None:
    heads = ["variant", "parameters", "MFLOPs a token", "state bytes", "tokens/s", "learning rate"]
    heads += ["validation loss", "spread over seeds", "seeds", "diverged at any rate"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    colors = plt.cycler(color=plt.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    axes.set_prop_cycle(plt.cycler(linestyle=["-", "--", ":", "-."]) * colors)  # 40 unlike lines
    for variant, cost in costs.items():
        own = [run for run in runs if run.variant == variant]
        if not own:
            continue
        best = _best_rate(own)
        chosen = [run for run in own if run.rate == best]
        losses = [run.loss for run in chosen if math.isfinite(run.loss)]
        speed = statistics.median(run.tokens_per_second for run in chosen)
        cells = [variant, f"{cost.parameters:,}", f"{cost.flops / 1e6:.2f}"]
        cells += [f"{cost.state_bytes:,}", f"{speed:,.0f}"]
        cells.append(f"{best:g}")
        if losses:
            cells += [f"{statistics.mean(losses):.4f}", f"{max(losses) - min(losses):.4f}"]
        else:
            cells += ["diverged", ""]
        diverged = sum(not math.isfinite(run.loss) for run in own)
        cells += [str(len(losses)), f"{diverged} of {len(own)}"]
        lines.append("| " + " | ".join(cells) + " |")
        drawn = [run.curve for run in chosen if math.isfinite(run.loss) or not losses]
        steps = [step for step, _ in drawn[0]]
        curves = [[loss for _, loss in curve] for curve in drawn]
        mean = [statistics.mean(part) for part in zip(*curves, strict=False)]
        axes.plot(steps[: len(mean)], mean, label=variant)
    axes.set(xlabel="step", ylabel="training loss (nats per token), mean over seeds")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(workdir / "losses.png", dpi=120)
    plt.close(figure)
    write_whole(workdir / "table.md", "\n".join(lines) + "\n")


def _cost(config: ConfigDict) -> Cost:
    model_config = LanguageModelConfig.from_config_dict(config.model)
    model, length = LanguageModel(model_config), config.data.sequence_length
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens)["params"])

    def loss(params, tokens):
        losses: Any = model.apply({"params": params}, tokens, tokens, method="token_losses")
        return jnp.sum(losses)

    flops = count_flops(jax.grad(loss), params, tokens) / length
    read: Any = lambda params, tokens: model.apply({"params": params}, tokens)
    state = jax.eval_shape(read, params, tokens)[1]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return Cost(parameter_count(model_config), flops, size)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(
            f"--learning_rates={text} must be finite numbers above 0, such as 2e-3,4e-3"
        )
    return rate


UNEXPECTED = "settings look like --set=steps=300"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("config", None, "Config file and variants, file.py:one,two.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
    flags.DEFINE_integer("seeds", 1, "Runs of each variant.", lower_bound=1)
    flags.DEFINE_list("learning_rates", [], "Tried with the first seed; the config's if none.")
    define_set_flag()


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    check_writable(Path(given.workdir) / "table.md", "--workdir")
    rates = [_rate(rate) for rate in given.learning_rates]
    configs = load_configs(given.config, given.set)
    if not rates:
        rates = [next(iter(configs.values())).optimizer.learning_rate]
    folder = Path(given.workdir)
    compare(configs, folder, given.seeds, rates)
    print((folder / "table.md").read_text() + f"drawn in {folder / 'losses.png'}")
