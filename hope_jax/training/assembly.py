"""What a config says is trained: model, optimiser, mesh and step."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.optimizer import make_optimizer, needs_layer_inputs
from hope_jax.training.sharding import (
    check_batch,
    check_parts,
    make_mesh,
    shares_of_processes,
)
from hope_jax.training.step import OnMesh, TrainState, abstract_state, make_train_step


class Assembly(NamedTuple):
    """What is trained, before anything of it is compiled or made.

    Attributes:
      mesh: the devices.
      model: the language model.
      optimizer: that changes it.
      target: shapes and shardings of the state.
      step: one step of training.
    """

    mesh: Mesh
    model: LanguageModel
    optimizer: optax.GradientTransformationExtraArgs
    target: TrainState
    step: OnMesh


def assemble(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Assembly:
    """Puts together what a config says, for devices that are there or that are not.

    Args:
      config: whole, of a run.
      devices: to train on; all of all processes if not given.

    Raises:
      ValueError: if the mesh does not fit the devices, or the batch, its sequences or a parameter
        the mesh.
    """
    sizes = config.mesh
    mesh = make_mesh(
        sizes.data, sizes.fsdp, sizes.tensor, sizes.expect_devices, devices, sizes.sequence
    )
    check_batch(mesh, config.data.batch_size, config.accumulate)
    shares_of_processes(mesh)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    check_parts(mesh, config.data.sequence_length, model.config.part_edges)
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_train_step(
        model,
        optimizer,
        mesh,
        config.accumulate,
        needs_layer_inputs(config.optimizer),
        config.optimizer.skip_above,
    )
    return Assembly(mesh, model, optimizer, abstract_state(model, optimizer, mesh), step)
