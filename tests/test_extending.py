"""What stands on the page on extending: its files are written, its commands run, on a tiny model."""

import pathlib
import re
import shlex
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from hope_jax.commands.compare import read_rows
from hope_jax.commands.config import read_config
from hope_jax.commands.trained_model import load_model, load_run_config
from hope_jax.data.corpus import is_held_out, load_documents
from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig
from hope_jax.models import LanguageModel, LanguageModelConfig, init_state
from hope_jax.models.own_layer import lay_out
from hope_jax.named import name_of
from hope_jax.optim import describe_weight_rules
from hope_jax.training import assembly, loop
from hope_jax.training.config import whole_config
from hope_jax.training.optimizer import decayed, make_optimizer, matrices
from hope_jax.training.sharding import AXES, RULES, make_mesh, parameter_shardings
from tests.commands.in_process import hope
from tests.training.runs import losses

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    shlex.split(text.replace("\\\n", " "))
    for text in re.findall(r"```\n(hope .*?)```", PAGE, re.DOTALL)
]
SIZES = dict(vocab_size=256, width=16, num_layers=1, num_heads=2, mlp_width=16)
TINY = {
    **{f"model.{name}": size for name, size in SIZES.items()},
    "model.cms_levels": 1,
    "model.titans.memory_chunk": 4,
    "model.titans.generator_chunk": 4,
    "data.sequence_length": 16,
    "data.batch_size": 8,
    "evaluate.ngram_orders": "",
    "evaluate.sample_tokens": 0,
    "evaluate.final_batches": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 3,
    "log.every": 1,
    "optimizer.warmup_steps": 0,
    "steps": 3,
}
# More of one's own, good and bad.
FILES["more_of_mine.py"] = """
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


def l2(output, target):
    return jnp.sum((output - target) ** 2) / 2


def huber(output, target):
    size = jnp.abs(output - target)
    return jnp.sum(jnp.where(size < 1, size**2 / 2, size - 1 / 2))


def mean_of_squares(output, target):
    return jnp.mean((output - target) ** 2) / 2


def rowwise(output, target):
    return (output - target) ** 2


def misspelt(output, target):
    return jnp.summ(output)


def looped(output, target):
    less = lambda x: jax.lax.while_loop(lambda y: jnp.sum(y**2) > 1, lambda y: y / 2, x)
    return jnp.sum(less(output) * target)


def count(learning_rate):
    return 3


def of_a_number(learning_rate):
    return optax.sgd(learning_rate / 2)


def any_arguments(learning_rate, weight_dimension_numbers=None, **arguments):
    seen.append((weight_dimension_numbers, arguments))
    return optax.sgd(learning_rate)


seen = []
numbers = lambda: iter((1, 2))


class Layer(nn.Module):
    rank: int = 4
    width: int = 0
    fault: str = ""
    act: object = nn.gelu

    @nn.compact
    def __call__(self, x, state=None, reset=None):
        self.param("lonely", nn.initializers.ones, (self.rank, 2, 3))
        nn.Dense(self.width, name="dense")(x)
        state = jnp.zeros((len(x), 2)) if state is None else state
        if self.fault == "state":
            state = state[:, : x.shape[1]]
        if self.fault == "axis":
            state = state.T
        if self.fault == "dtype":
            x = x.astype(jnp.bfloat16)
        if self.fault == "variables":
            self.variable("batch_stats", "mean", jnp.zeros, ())
        if self.fault == "reset" and reset is not None:
            raise NotImplementedError("no documents")
        return x if self.fault == "pair" else (x, state)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's files, beside which its commands are run."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (folder / "text").mkdir()
    for index in range(10):
        words = " ".join(f"{index * 7 + n} green bottles" for n in range(40))
        (folder / "text" / f"{index}.txt").write_text(words)
    yield folder
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def one_device(monkeypatch):
    devices = np.array(jax.devices()[:1]).reshape((1,) * len(AXES))
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    monkeypatch.setattr(assembly, "make_mesh", lambda *sizes: mesh)


def run(command, workdir, **changes):
    """Runs a command of the page on the tiny model, and returns the run's config."""
    settings = {**TINY, **changes}
    if "data" not in command[3]:
        settings.setdefault("data.files", "text/*.txt")
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    assert command[0] == "hope"
    assert hope(*command[1:], f"--workdir={workdir}", *given) == 0
    return load_run_config(str(workdir))


def test_the_page_has_five_examples_of_a_dozen_lines():
    assert [re.sub(r".*--workdir=", "", command[3]) for command in COMMANDS] == [
        "runs/objective",
        "runs/layer",
        "runs/optimizer",
        "runs/data",
        "runs/rows",
    ]
    for name in ("my_objective", "my_layer", "my_optimizer", "my_data", "my_rows"):
        assert FILES[f"{name}.py"].count("\n") < 35


# An objective.


def test_an_objective_is_the_loss_whose_gradient_is_written():
    error = TitansConfig(width=8, num_heads=2, objective="my_objective.pseudo_huber").error
    output, target = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    e = np.asarray(output - target)
    length = np.sqrt(1 + (e**2).sum(-1, keepdims=True))
    np.testing.assert_allclose(error(output, target), e / length, rtol=1e-5)
    # H = 1 / s - e e^T / s^3, which along e is 1 / s^3: never more than 1.
    np.testing.assert_array_equal(error.growth(output, target), np.ones((3, 5)))
    own = TitansConfig(width=8, num_heads=2, objective="more_of_mine.l2").error
    three = type(own)(lambda o, t: 3 * own.loss(o, t))
    np.testing.assert_allclose(three.growth(output, target), np.full((3, 5), 3.0), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda o: three.growth(o, o).sum())(output)).all()


@pytest.mark.parametrize(
    ("own", "same", "settings"),
    [
        ("l2", "l2", {"network": "mlp"}),
        ("huber", "huber", {"network": "matrix", "window": 2, "adaptive": (), "projector": "none"}),
    ],
)
def test_a_built_in_objective_written_anew_is_the_same(own, same, settings, x64):
    x = 4 * jax.random.normal(jax.random.key(0), (1, 9, 8), jnp.float64)
    results = []
    for objective in (f"more_of_mine.{own}", same):
        sizes = dict(width=8, num_heads=2, memory_chunk=4, generator_chunk=4, convolution=1)
        config = TitansConfig(**sizes, **settings, objective=objective, generated_target=False)
        layer = SelfModifyingTitans(config, jnp.float64, jnp.float64)
        params = jax.jit(layer.init)(jax.random.key(1), x)

        def loss(params, layer=layer):
            y, state = layer.apply(params, x[:, :6])  # a chunk and a half
            for place in range(6, 9):  # and by token
                more, state = layer.apply(params, x[:, place : place + 1], state)
                y = jnp.concatenate([y, more], axis=1)
            return jnp.sum(y**2), y

        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *results)


def test_levels_descend_a_loss_of_one_s_own(x64):
    tokens = jnp.arange(14)[None] * 37 % 256
    outputs = []
    for objective in ("local", "more_of_mine.mean_of_squares", "more_of_mine.l2"):
        learning = {"objective": objective, "chunks": (4,)}
        config = LanguageModelConfig(**SIZES, sequence_layer="attention", in_context=learning)
        model = LanguageModel(config)
        params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        outputs.append(jax.jit(model.apply)({"params": params}, tokens)[0])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6, atol=1e-6)
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-4


# A sequence layer.


def layer_model(**changes):
    sizes = {**SIZES, "sequence_layer": "my_layer.Average", **changes}
    model = LanguageModel(LanguageModelConfig(**sizes))
    tokens = jnp.arange(8 * 6).reshape(8, 6) * 37 % 256
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return model, tokens, boxed


def test_the_layer_trains_on_a_mesh_and_goes_on_when_taken_up_again(capfd, tmp_path):
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "optimizer.name": "m3"}
    config = run(COMMANDS[1], tmp_path / "run", **mesh)
    assert config.model.sequence_layer == "my_layer.Average"
    assert config.model.layer.to_dict() == {"decay": 0.8}
    whole = losses(tmp_path / "run")
    assert [step for step, _ in whole] == [1, 2, 3] and np.isfinite(whole).all()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    assert hope("train", f"--workdir={tmp_path / 'run'}") == 0
    assert "from step 2" in capfd.readouterr().out
    assert losses(tmp_path / "run") == whole
    model, params, _ = load_model(str(tmp_path / "run"))
    assert params["blocks"]["my_layer.Average"]["mix"].shape == (1, 16, 16)
    assert model.config.layer == {"decay": 0.8}


def test_without_the_file_a_run_says_what_it_needs(tmp_path, monkeypatch, capfd):
    config = whole_config({"model": {**SIZES, "sequence_layer": "my_layer.Average"}, **SECTIONS})
    (tmp_path / "config.json").write_text(config.to_json())
    assert load_run_config(str(tmp_path)).model.layer.decay == 0.9
    monkeypatch.delitem(sys.modules, "my_layer")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "extending" not in path])
    monkeypatch.chdir(tmp_path)
    assert hope("generate", f"--workdir={tmp_path}", "--prompt=a") == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "model.sequence_layer='my_layer.Average'" in said
    assert "run from the folder that holds my_layer.py, or set PYTHONPATH to it" in said


SECTIONS = {name: {} for name in ("data", "optimizer", "mesh", "checkpoint", "evaluate", "log")}


def test_the_layer_reads_pieces_and_documents_and_lies_on_the_mesh():
    model, tokens, boxed = layer_model(pattern=("my_layer.Average", "attention"), num_layers=2)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    apply = jax.jit(lambda *args: model.apply({"params": params}, *args))
    whole, _ = apply(tokens)
    first, state = apply(tokens[:, :4], init_state(model, params, 8))
    rest, _ = apply(tokens[:, 4:], state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, atol=1e-5)
    reset = jnp.zeros((8, 6), bool).at[:, 4].set(True)
    np.testing.assert_allclose(
        apply(tokens, None, reset)[0][:, 4:], apply(tokens[:, 4:])[0], atol=1e-5
    )
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    places = parameter_shardings(mesh, boxed)
    assert places["blocks"]["own_0"]["my_layer.Average"]["mix"].spec == P(None, "fsdp", "tensor")
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        _, state = jax.jit(lambda tokens: model.apply({"params": params}, tokens))(tokens)
        fresh = jax.jit(lambda: lay_out(jnp.zeros((8, 3))))()  # of which nothing else says where
    assert state.blocks[0].sequence.sharding.spec == P(None, ("data", "fsdp"))
    assert fresh.sharding.spec[0] == ("data", "fsdp")


def test_m3_takes_for_matrices_what_the_layer_says():
    _, _, boxed = layer_model(sequence_layer="more_of_mine.Layer", layer={"rank": 5})
    params = nn.unbox(boxed)
    assert "blocks/more_of_mine.Layer/lonely        (1, 5, 2, 3)  NO RULE" in describe_weight_rules(
        params, matrices
    )
    m3 = make_optimizer({**OPTIMIZER, "name": "m3"}, 3)
    with pytest.raises(ValueError, match="lonely, shape .5, 2, 3.* an attribute matrices"):
        jax.eval_shape(m3.init, params)
    decays = decayed(params)["blocks"]["more_of_mine.Layer"]
    assert decays == {"lonely": True, "dense": {"kernel": True, "bias": False}}
    layer = sys.modules["more_of_mine"].Layer
    numbers = optax.contrib.MuonDimensionNumbers(-1, (0, 1))
    layer.matrices = (("lonely", numbers), ("", None))
    try:
        rules = describe_weight_rules(params, matrices)
        assert re.search(r"lonely .* 1 matrix of 3 x 10", rules)
        assert re.search(r"Layer/dense/kernel .* adamw", rules)
        assert decayed(params)["blocks"]["more_of_mine.Layer"]["dense"]["kernel"] is False
    finally:
        del layer.matrices


# An optimiser, a source of documents, a row.

OPTIMIZER = dict(
    learning_rate=0.1,
    warmup_steps=0,
    final_fraction=1.0,
    clip_norm=0.0,
    weight_decay=0.0,
    arguments={},
    periods={},
)


def test_the_optimiser_and_the_objective_train_together(one_device, tmp_path):
    own = "my_objective.pseudo_huber"
    assert COMMANDS[0][-1] == f"--config.model.titans.objective={own}"
    config = run(COMMANDS[2], tmp_path / "run", **{"model.titans.objective": own})
    assert config.model.titans.objective == own
    assert config.optimizer.name == "my_optimizer.signs"
    assert config.optimizer.arguments.momentum == 0.95
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert len(values) == 3 and values[2] < values[0]


def test_the_optimiser_is_made_with_schedule_decay_and_matrices():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([1.0])}
    gradients = {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([-5.0])}
    made = make_optimizer({**OPTIMIZER, "name": "my_optimizer.signs", "weight_decay": 0.5}, 3)
    updates, _ = made.update(gradients, made.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.15, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], [0.1], rtol=1e-6)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made.init(low)[0])} == {"float32", "int32"}
    make_optimizer({**OPTIMIZER, "name": "more_of_mine.any_arguments", "arguments": {"x": 1}}, 3)
    assert sys.modules["more_of_mine"].seen == [(matrices, {"x": 1})]


def test_a_source_s_documents_are_split_and_another_is_refused(
    one_device, tmp_path, capfd, monkeypatch
):
    documents = load_documents(source="my_data.sums", arguments={"count": 50, "seed": 1})
    assert len(documents.train) + len(documents.validation) == 50
    held_out = sum(is_held_out(str(place), 0.1) for place in range(50))
    assert len(documents.validation) == held_out > 0
    assert re.fullmatch(rb"\d+ \+ \d+ = \d+\n", documents.train[0])
    text = "model.sequence_layer=attention"
    run(COMMANDS[3], tmp_path / "run", **dict([text.split("=")]), **{"data.arguments.count": 200})
    data = sys.modules["my_data"]
    sums = data.sums
    monkeypatch.setattr(
        data, "sums", lambda count: (text.replace("=", "is") for text in sums(count))
    )
    assert hope("train", f"--workdir={tmp_path / 'run'}") == 2
    said = capfd.readouterr().err
    assert "data.source='my_data.sums', data.arguments=" in said and "is not the corpus" in said


def test_rows_hold_functions_by_name():
    spec = next(part for part in COMMANDS[4] if part.startswith("--config="))
    rows = read_rows(spec.removeprefix("--config="), ["steps=3"])
    objectives = [row.model.titans.objective for row in rows.values()]
    assert objectives == ["l2", "my_objective.pseudo_huber", "dot"]


# Names.


def test_what_a_config_file_defines_is_found_beside_it(tmp_path, monkeypatch):
    (tmp_path / "my_config.py").write_text(
        "from hope_jax.training.config import default_config\n"
        "def mine(output, target):\n    return ((output - target) ** 2).sum()\n"
        f"def get_config():\n    return default_config(**{SIZES}, titans=dict(objective=mine))\n"
    )
    config = read_config(str(tmp_path / "my_config.py"))
    assert whole_config(config).model.titans.objective == "my_config.mine"
    assert str(tmp_path) in sys.path
    sys.path.remove(str(tmp_path))
    del sys.modules["my_config"]


def test_what_has_no_name_is_refused(monkeypatch):
    def local(output, target):
        return 0.0

    for thing in (local, lambda x: x, {}.get, 3):
        with pytest.raises(ValueError, match="no name by which it is found again; write it as"):
            name_of(thing)
    assert name_of(optax.lion) == "optax._src.alias.lion"
    old = is_held_out
    monkeypatch.setattr("hope_jax.data.corpus.is_held_out", losses)
    with pytest.raises(ValueError, match="is not what hope_jax.data.corpus.is_held_out is now"):
        name_of(old)
    monkeypatch.setattr(old, "__module__", "__main__")
    with pytest.raises(ValueError, match="stands in the program that runs"):
        name_of(old)


BAD = {
    "model.titans.objective=more_of_mine.l3": "has no 'l3'; nearest: ",
    "model.titans.objective=more_of_mind.l2": "no module more_of_mind from .*; nearest: more_of_mine",
    "model.titans.objective=more_of_mine.rowwise": "objective: more_of_mine.rowwise gives .1,. for two",
    "model.titans.objective=more_of_mine.misspelt": "misspelt fails with AttributeError in line 26:",
    "model.titans.objective=more_of_mine.looped": "looped fails with ValueError",
    "model.titans.objective=broken.loss": "the file of broken fails with ZeroDivisionError in line 2",
    "model.titans.objective=cut.loss": "the file of cut fails with SyntaxError in line 1",
    "model.titans.objective=lacking.loss": "lacking fails with ModuleNotFoundError in line 1",
    "model.sequence_layer=more_of_mine.l2": "more_of_mine.l2 is no class of a Flax module",
    "model.layer.rank=5": "model.layer.rank is no setting: no sequence layer of your own",
    "optimizer.name=more_of_mine.sgd": "optimizer.name='more_of_mine.sgd': more_of_mine .* has no 'sgd'",
    "optimizer.name=more_of_mine.seen": "optimizer.name='more_of_mine.seen' is list, not a function",
    "data.source=more_of_mine.number": "has no 'number'; nearest: numbers",
    "data.source=numbers": "data.source='numbers' must be what is your own by its name",
    "data.arguments.count=3": "data: arguments are those of source",
}


@pytest.mark.parametrize("change", BAD)
def test_what_is_not_there_or_cannot_work_is_refused_in_one_line(
    change, folder, capfd, monkeypatch
):
    def begun(*_):
        raise AssertionError("a run has begun")

    monkeypatch.setattr(loop, "init_state", begun)
    (folder / "broken.py").write_text("x = 0\ny = 1 / x\n")
    (folder / "cut.py").write_text("def loss(\n")
    (folder / "lacking.py").write_text("import not_there_at_all\n")
    more = ["--config.data.files=text/*.txt"] if "data" not in change else []
    code = hope(
        "train", "--config=experiments/quickstart.py", "--workdir=bad", f"--config.{change}", *more
    )
    said = capfd.readouterr().err
    assert code == 2 and said.count("\n") == 1, said
    assert re.search(BAD[change], said), said
    assert not (folder / "bad").exists()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"rank": 2.5}, "layer.rank=2.5 must be a whole number"),
        ({"ranks": 2}, "layer.ranks is no setting; nearest: rank"),
        ({"act": "gelu"}, "layer.act is no setting"),
        ({"width": 3}, "layer.width is no setting"),
        ({"fault": "state"}, "another state after 0 tokens"),
        ({"fault": "axis"}, "the first axis of each of its arrays"),
        ({"fault": "dtype"}, r"gives y of bfloat16\[5, 3, 16\] for x of float32"),
        ({"fault": "variables"}, "has variables of batch_stats, params"),
        ({"fault": "reset"}, "fails with NotImplementedError in line 7.: no documents"),
        ({"fault": "pair"}, "it must give a pair"),
    ],
)
def test_a_layer_that_does_not_keep_to_its_part_is_refused(layer, said):
    with pytest.raises(ValueError, match=said):
        LanguageModelConfig(**SIZES, sequence_layer="more_of_mine.Layer", layer=layer)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("more_of_mine.count", "gives int, not an optax.GradientTransformation"),
        ("more_of_mine.of_a_number", "of_a_number fails with TypeError in line"),
        ("more_of_mine.any_arguments", "set optimizer.weight_decay"),
    ],
)
def test_an_optimiser_that_is_none_is_refused(name, said):
    arguments = {"weight_decay": 0.1} if "any" in name else {}
    with pytest.raises(ValueError, match=said):
        make_optimizer({**OPTIMIZER, "name": name, "arguments": arguments}, 3)


def test_documents_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="gives int as document 0; each must be a text or bytes"):
        load_documents(source="more_of_mine.numbers")
