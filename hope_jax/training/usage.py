"""How much of the devices a run uses."""

from jax.sharding import Mesh

from hope_jax.models import LanguageModelConfig
from hope_jax.models.flops import Flops, useful_flops
from hope_jax.training.chip import peak_flops


def usage_of_a_token(model: LanguageModelConfig, length: int, mesh: Mesh) -> Flops | None:
    """Shares of the devices' peak that one token a second is, for MFU; None if the peak is not known.

    Args:
      model: that is trained.
      length: T, tokens of a sequence.
      mesh: the devices.
    """
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    if peak is None:
        return None
    total, inner = useful_flops(model, length)
    return Flops(total / (peak * mesh.size), inner / (peak * mesh.size))
