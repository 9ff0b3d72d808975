"""The model that a run has trained."""

from typing import Any

from hope_jax.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.runs.checkpoint import Checkpoints, load_config
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.sharding import make_mesh
from hope_jax.training.step import abstract_state


def load_model(workdir: str) -> tuple[LanguageModel, Any, Tokenizer]:
    """Loads a trained model from a run's folder, onto this machine's devices.

    Args:
      workdir: folder of the run.

    Returns:
      The model, its parameters, and its tokenizer.

    Raises:
      ValueError: if there is no run, or no checkpoint yet.
    """
    config = load_config(workdir)
    tokenizer = load_tokenizer(config.data.tokenizer)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    check_vocabulary(tokenizer, model.config.vocab_size, config.data.tokenizer)
    optimizer = make_optimizer(config.optimizer, config.steps)
    checkpoints = Checkpoints(workdir, config, keep=config.checkpoint.keep)
    restored = checkpoints.restore(abstract_state(model, optimizer, make_mesh()))
    checkpoints.close()
    if restored is None:
        raise ValueError(f"--workdir={workdir} has no checkpoint yet; let the run save one")
    return model, restored[0].params, tokenizer
