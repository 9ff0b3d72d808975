"""Makes a run of a Llama checkpoint in Hugging Face's format, or such a checkpoint of a run.

    hope convert --from_llama=FOLDER --workdir=DIR --config=experiments/stacked_llama.py
    hope convert --workdir=DIR --to_llama=FOLDER

The first makes a run in which nothing has been trained yet: generate, evaluate and inspect with it at
once, or train it with `hope train --workdir=DIR`. The config says all but the sizes of
the model; with `model.in_context` the pre-trained MLPs become levels that learn while they read.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, define_config_flags, read_config
from hope_jax.commands.paths import check_output_folder
from hope_jax.commands.trained_model import load_model
from hope_jax.models import LanguageModel
from hope_jax.models.llama import read_llama, read_llama_config, write_llama
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.training.config import RunConfig, whole_config
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.step import TrainState

# Settings of the model that a checkpoint does not speak of.
_OWN = (
    "attention_window",
    "cms_connection",
    "cms_levels",
    "cms_order",
    "dtype",
    "in_context",
    "loss_chunk",
    "param_dtype",
    "remat",
)


def import_llama(folder: str, workdir: str, config: ConfigDict) -> None:
    """Makes a run at step 0 whose parameters are those of a Llama checkpoint.

    Args:
      folder: of the checkpoint; if a tokenizer.json is there, it becomes the run's tokenizer.
      workdir: folder of the run.
      config: of the run. Of its model, what does not follow from the checkpoint is kept: levels,
        in-context learning, window, dtypes and the like.

    Raises:
      ValueError: if the checkpoint cannot be read, or the folder holds another run.
    """
    own = {name: value for name, value in config.model.to_dict().items() if name in _OWN}
    model_config = read_llama_config(folder, **own)
    model, params = LanguageModel(model_config), read_llama(folder, model_config)
    tokens = jnp.zeros((1, 2), jnp.int32)
    # What only in-context learning has begins as in any model.
    fresh = jax.jit(lambda key: _rest(nn.unbox(model.init(key, tokens)["params"]), params))
    params = {**jax.tree.map(jnp.asarray, params), **fresh(jax.random.key(config.seed))}

    config = ConfigDict(config.to_dict())
    config.model = ConfigDict(json.loads(json.dumps(vars(model_config), default=dict)))
    tokenizer = Path(folder) / "tokenizer.json"
    if tokenizer.is_file():
        config.data.tokenizer = str(tokenizer.absolute())
    optimizer = make_optimizer(config.optimizer, config.steps)
    checkpoints = CheckpointWriter(workdir, config, config.checkpoint.keep)
    try:
        if checkpoints.latest() is not None:
            raise ValueError(f"--workdir={workdir} holds a run already; give another folder")
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        checkpoints.save(0, state, {})
    finally:
        checkpoints.close()


def _rest(all_params: Any, given: Any) -> Any:
    return {name: value for name, value in all_params.items() if name not in given}


UNEXPECTED = "folders are given as --from_llama=FOLDER, --to_llama=FOLDER and --workdir=DIR"


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("from_llama", None, "Folder of a checkpoint to make a run of.")
    flags.DEFINE_string("to_llama", None, "Folder to write the run's model to as a checkpoint.")


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    if bool(given.from_llama) == bool(given.to_llama):
        raise ValueError("give one of --from_llama and --to_llama")
    if given.from_llama and given.config is None:
        raise ValueError("--from_llama needs --config, such as experiments/stacked_llama.py")
    if given.from_llama:
        check_output_folder("workdir", given.workdir)
        config = change_settings(RunConfig, read_config(given.config), given.set)
        import_llama(given.from_llama, given.workdir, whole_config(config, print))
    else:
        check_output_folder("to_llama", given.to_llama)
        model, params, _ = load_model(given.workdir)
        write_llama(given.to_llama, model.config, params)
