"""Plans of tiny runs, beside what compiling and counting say."""

import types

import jax
import pytest

from hope_jax.models import LanguageModelConfig
from hope_jax.models.flops import Flops, useful_flops
from hope_jax.planning.cost import Collective, Cost, Share
from hope_jax.planning.plan import make_plan
from hope_jax.planning.table import as_markdown, notes
from hope_jax.planning.topology import CHIPS, GIB, Devices, find_devices
from hope_jax.training.assembly import assemble
from hope_jax.training.step import abstract_batch
from tests.comparison.plans import config_of


def config(**mesh):
    made = config_of(vocab_size=32, width=32, num_heads=2, mlp_width=64, num_layers=2)
    made.data.update(batch_size=16, sequence_length=16)
    made.optimizer.update(name="adamw")
    made.steps = 1000
    made.mesh.update(mesh)
    return made


@pytest.fixture(scope="module")
def planned():
    """A plan for eight devices of this machine, and the step's program."""
    run = config()
    assembly = assemble(run)
    batch = abstract_batch(assembly.mesh, 16, 16, resets=False)
    plan = make_plan(run, find_devices("local"), assembly)
    return plan, assembly.step.lower(assembly.target, batch).compile()


def test_memory_is_what_the_program_says(planned):
    plan, program = planned
    stats = program.memory_analysis()
    assert plan.memory.temporaries == stats.temp_size_in_bytes
    given = plan.memory.parameters + plan.memory.optimizer + plan.memory.batch
    assert given == (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    # Float32, whole on each of the devices; two momenta, and counts.
    assert plan.memory.parameters == 4 * plan.parameters
    assert 0 <= plan.memory.optimizer - 8 * plan.parameters < 32
    assert plan.memory.fits


def test_flops_are_those_of_forward_and_backward(planned):
    plan, _ = planned
    model = LanguageModelConfig.from_config_dict(plan.config.model)
    assert plan.useful == useful_flops(model, 16)
    # The compiler computes attention's scores once, which are traced twice: a part in seventy here.
    made = plan.cost.flops * plan.chips / (plan.useful.total * plan.tokens)
    assert 69 / 70 - 1e-3 < made <= 1
    assert {one.kind for one in plan.cost.collectives} == {"all-reduce"}
    assert plan.cost.endless == 0


def test_where_the_compiler_gives_no_times_the_table_says_so(planned):
    plan, _ = planned
    table = as_markdown({"one": plan})
    assert "compiler's estimate" in table and "MFU" not in table
    assert "mesh.fsdp and mesh.tensor are 1" in notes(plan)[0]


def test_estimates_follow_from_cycles(planned):
    plan, _ = planned
    chip = CHIPS["v5e"]
    device = types.SimpleNamespace(device_kind="TPU v5 lite")
    gathers = [Collective("all-gather", (8, 8), int(2e9), 40, "")]
    cost = Cost(10, {"products": Share(3e9, 7)}, {"titans": Share(3e9, 7)}, gathers, {"copy": 5}, 0)
    one = plan._replace(
        devices=Devices("v5e:2x2", [device] * 4, chip), cost=cost, useful=Flops(1e9, 25e7)
    )
    assert one.seconds == 3e9 / 1.5e9
    assert one.mfu == pytest.approx(1e9 * 256 / (4 * 197e12 * 2))
    two = one._replace(cost=cost._replace(kinds={"products": Share(1.5e9, 7)}))
    rows = {
        cells[0]: cells[1:]
        for line in as_markdown({"one": one, "two": two}).splitlines()
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert rows[""] == ["one", "two", "one / two"]
    assert rows["compiler's estimate of a step"] == ["2 s", "1 s", "2.00"]
    assert (
        rows["useful FLOPs of a step"][0] == "0.256 T" and rows["- of inner loops"][0] == "0.064 T"
    )
    assert rows["tokens/s"] == ["128", "256", "0.50"]
    assert rows["days for all tokens"][0] == f"{2000 / 86400:.3g} (256,000)"
    assert rows["chip-hours"] == [f"{4 * 2000 / 3600:.3g}", f"{4 * 1000 / 3600:.3g}", "2.00"]
    assert rows["all-gather of a step"] == ["40, 2 GB", "40, 2 GB", "1.00"]
    assert rows["collectives, at the links' peak"][0] == "10 ms"
    assert "5 operations that have none (the most: 5 copy)" in notes(one)[0]


def test_what_does_not_fit_is_told(planned):
    plan, _ = planned
    large = plan._replace(memory=plan.memory._replace(total=20.0 * GIB, limit=16.0 * GIB))
    assert notes(large)[0] == "does not fit: a chip needs 20.00 GiB and has 16.00 GiB"
    assert "20.00 GiB of 16.00 GiB" in as_markdown({"large": large})


def test_a_step_is_compiled_for_tpus_that_are_not_there():
    pytest.importorskip("libtpu")
    run = config_of(width=8, num_heads=1, mlp_width=8)
    run.data.update(batch_size=4, sequence_length=8)
    run.mesh.update(fsdp=4)
    run.optimizer.update(name="sgd", weight_decay=0.0)
    devices = find_devices("v5e:2x2")
    plan = make_plan(run, devices, assemble(run, devices.devices))
    assert plan.chips == 4 and plan.memory.limit == 15.75 * GIB
    assert plan.memory.fits and plan.memory.parameters < plan.parameters * 4
    assert plan.seconds > 0 and 0 < plan.mfu < 1
    assert "all-gather" in {one.kind for one in plan.cost.collectives}
    assert plan.cost.flops * 4 >= plan.useful.total * plan.tokens
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize("name, chips", [("v5e:1x1", 1), ("v5e:4x8", 32), ("v5p:4x4x4", 64)])
def test_topologies(name, chips):
    pytest.importorskip("libtpu")
    found = find_devices(name)
    assert len(found.devices) == chips
    assert found.devices[0].device_kind == found.chip.device_kind


def test_a_row_stands_where_its_column_has_it(planned):
    plan, _ = planned
    cost = plan.cost._replace(collectives=[Collective("all-to-all", (8, 8), 8, 1, "")])
    lines = as_markdown({"one": plan, "two": plan._replace(cost=cost)}).splitlines()
    labels = [line.split("|")[1].strip() for line in lines]
    place = labels.index("all-to-all of a step")
    assert labels[place - 1] == "FLOPs as compiled"
    assert "all-reduce of a step" in labels[place + 1 :]
