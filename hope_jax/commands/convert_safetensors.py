"""Any run's model as a folder of safetensors, with its config and tokenizer, and back."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import hope_jax
from hope_jax.commands.first_checkpoint import check_no_run, write_first_checkpoint
from hope_jax.commands.trained_model import load_model, load_run_config
from hope_jax.data.tokenizers import copy_tokenizer, load_tokenizer, tokenizer_file
from hope_jax.data.whole_folder import whole_folder
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.parameter_count import parameter_shapes
from hope_jax.models.safetensors_folder import read_params, write_params
from hope_jax.runs.checkpoint_reader import run_and_step
from hope_jax.runs.metrics import read_metrics
from hope_jax.training.config import whole_config

_CONFIG, _TYPE = "config.json", "hope_jax"


def export_safetensors(workdir: str, folder: str, flag: str, card: bool = False) -> None:
    """Writes a run's model as model.safetensors, config.json and a tokenizer.

    Args:
      workdir: folder of the run, or of one of its checkpoints in place of the newest.
      folder: to write; it must be empty or not there.
      flag: that gave the folder, for the errors.
      card: whether to add a README.md that tells what the model is.

    Raises:
      ValueError: if there is no run, or the folder cannot be written.
    """
    config = load_run_config(run_and_step(workdir)[0])
    with whole_folder(folder, flag) as aside:
        _, params, _ = load_model(workdir)
        write_params(aside, params)
        about = {"model_type": _TYPE, "hope_jax_version": hope_jax.__version__}
        about["run"] = config.to_dict()
        (aside / _CONFIG).write_text(json.dumps(about, indent=2, default=dict) + "\n")
        copy_tokenizer(config.data.tokenizer, aside)
        if card:
            count = sum(leaf.size for leaf in jax.tree.leaves(params))
            (aside / "README.md").write_text(_card(workdir, config, count))


def import_safetensors(folder: str, workdir: str) -> None:
    """Makes a run at step 0 of what `export_safetensors` has written.

    Args:
      folder: that was written.
      workdir: folder of the run, or its address in a bucket.

    Raises:
      ValueError: if the folder cannot be read, or `workdir` holds another run.
    """
    check_no_run(workdir)
    path = Path(folder) / _CONFIG
    try:
        about = json.loads(path.read_text())
        known = about["model_type"] == _TYPE
        config = ConfigDict(about["run"]) if known else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a config of hope_jax ({error!r})") from error
    if config is None:
        raise ValueError(
            f"{path} is of model_type={about['model_type']!r}, not {_TYPE!r}; a Llama is read with "
            f"--from_llama={folder}"
        )
    config = whole_config(config)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    params = jax.tree.map(jnp.asarray, read_params(folder, parameter_shapes(model)))
    if config.data.tokenizer != "bytes":
        config.data.tokenizer = str(tokenizer_file(folder))  # of which the run keeps a copy
        load_tokenizer(config.data.tokenizer)
    write_first_checkpoint(workdir, config, params)


def _card(workdir: str, config: ConfigDict, count: int) -> str:
    """What a hub shows of a model."""
    data = next((f"`{config.data[n]}`" for n in ("files", "tfds", "tokens") if config.data[n]), "")
    losses = [line for line in read_metrics(workdir) if "validation_loss" in line]
    loss = (
        f"{losses[-1]['validation_loss']:.4f} nats per token at step {losses[-1]['step']}"
        if losses
        else "not measured"
    )
    return f"""---
library_name: hope_jax
pipeline_tag: text-generation
tags:
- jax
- hope_jax
- nested-learning
---

# A language model of hope_jax

* Parameters: {count:,}, {config.model.param_dtype}.
* Layers: {config.model.num_layers}, of width {config.model.width}.
* Data: {data or "the standard library of the Python that trained it"}; tokenizer in this folder.
* Validation loss: {loss}.

Load it with

```
hope convert --from_safetensors=FOLDER --workdir=runs/it
hope generate --workdir=runs/it --prompt="Once upon a time"
```
"""
