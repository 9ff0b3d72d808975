"""Language models built from the layers."""

from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.language_model import LanguageModel, ModelState, init_state

__all__ = ["LanguageModel", "LanguageModelConfig", "ModelState", "init_state"]
