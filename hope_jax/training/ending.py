"""What a run shows at its end: how good the model is, a sample, and what to do next."""

import math
import shlex
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from hope_jax.counts import count
from hope_jax.data.ngram import witten_bell_bits_per_byte
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.inference.sampling import generate, read
from hope_jax.inference.text_stream import show_controls
from hope_jax.models import LanguageModel
from hope_jax.runs.metrics import AnyMetrics
from hope_jax.runs.picture import plot_losses
from hope_jax.training.corpus import Corpus


def result_line(config: ConfigDict, result: dict[str, float]) -> str:
    """How good the model has become, in a line."""
    said = f"{result['bits_per_byte']:.3f} bits per byte"
    return f"validation: {said} after {count(config.steps, 'step')}"


def finish(
    config: ConfigDict,
    workdir: str,
    loss: float,
    corpus: Corpus,
    console: Console,
    metrics: AnyMetrics,
) -> dict[str, float]:
    """Writes down and shows how good the model has become."""
    documents, validation = corpus.documents, corpus.validation
    bits = loss / math.log(2) * validation.num_told / validation.num_bytes
    result = {"validation_loss": loss, "bits_per_byte": bits}
    metrics.write_final(config.steps, **result)
    if jax.process_index() == 0:
        console.print(result_line(config, result))
        for order in config.evaluate.ngram_orders if documents is not None else ():
            baseline = witten_bell_bits_per_byte(documents.train, documents.validation, order)
            console.print(f"  a {order}-gram on the whole validation part: {baseline:.3f}")
            result[f"{order}_gram_bits_per_byte"] = baseline
        console.print(f"losses drawn in {plot_losses(workdir)}", markup=False, soft_wrap=True)
    return result


def show_sample(
    config: ConfigDict, model: LanguageModel, params: Any, tokenizer: Tokenizer, console: Console
) -> None:
    """Lets the model continue the config's prompt."""
    if jax.process_count() > 1 or console.quiet or not config.evaluate.sample_tokens:
        return
    prompt = [*tokenizer.before, *tokenizer.encode(config.evaluate.prompt)]
    context = read(model, params, np.asarray(prompt, np.int32)[None])
    ids, _ = generate(
        model,
        params,
        context,
        jax.random.key(config.seed),
        num_tokens=config.evaluate.sample_tokens,
        temperature=0.8,
        vocab_size=tokenizer.vocab_size,
        end_ids=tokenizer.end_ids,
    )
    console.print("a sample:", style="bold")
    text = config.evaluate.prompt + tokenizer.decode(ids[0])
    console.print(show_controls(text), markup=False, highlight=False)


def say_what_is_next(config: ConfigDict, workdir: str, console: Console) -> None:
    """What can be done with the run."""
    folder = shlex.quote(workdir)
    lines = [
        f"hope generate --workdir={folder} --prompt={shlex.quote(config.evaluate.prompt)}",
        f"hope evaluate --workdir={folder} --text=FILE",
    ]
    if config.model.in_context is not None:
        lines.append(f"hope inspect --workdir={folder} --text=FILE")
    console.print("next:", style="bold")
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
