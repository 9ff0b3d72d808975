"""The model that a run has trained."""

from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hope_jax.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.parameter_count import boxed_shapes
from hope_jax.runs.checkpoint_reader import read_params_and_step, run_and_step
from hope_jax.runs.run_config import load_config
from hope_jax.runs.run_tokenizer import tokenizer_of
from hope_jax.training.config import whole_config
from hope_jax.training.sharding import parameter_shardings


def load_run_config(workdir: str, flag: str = "--workdir") -> ConfigDict:
    """The whole config of the run in a folder, with the defaults of what an older run does not say.

    Its tokenizer is the one in the folder, wherever that lies now.

    Args:
      workdir: folder of the run.
      flag: that gave it, for the error.

    Raises:
      ValueError: if there is no run, or its config does not fit.
    """
    config = load_config(workdir, flag)
    try:
        config = whole_config(config)
    except ValueError as error:
        raise ValueError(f"{workdir}/config.json: {error}") from error
    config.data.tokenizer = tokenizer_of(workdir, config.data.tokenizer)
    return config


def load_model(workdir: str, mesh: Mesh | None = None) -> tuple[LanguageModel, Any, Tokenizer]:
    """Loads a trained model: see `load_model_and_step`.

    Returns:
      The model, its parameters, and its tokenizer.
    """
    return load_model_and_step(workdir, mesh)[0]


def load_model_and_step(
    workdir: str, mesh: Mesh | None = None
) -> tuple[tuple[LanguageModel, Any, Tokenizer], int]:
    """Loads a trained model from a run's folder; the run may go on meanwhile.

    Args:
      workdir: folder of the run, or of one of its checkpoints in place of the newest; nothing in it
        is changed.
      mesh: on which the parameters are to lie, as in training; None for one device.

    Returns:
      The model, its parameters, and its tokenizer; and the step of the checkpoint that was read.

    Raises:
      ValueError: if there is no run, or no checkpoint yet, or the mesh does not divide the parameters.
      RunFolderError: if the folder cannot be read.
    """
    config = load_run_config(run_and_step(workdir)[0])
    tokenizer = load_tokenizer(config.data.tokenizer)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    check_vocabulary(tokenizer, model.config.vocab_size, config.data.tokenizer)
    boxed = boxed_shapes(model)
    shapes = nn.unbox(boxed)
    if mesh is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: one, shapes)
    else:
        places = parameter_shardings(mesh, boxed)
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
    step, params = read_params_and_step(workdir, target)
    return (model, params, tokenizer), step
