"""`experiments/formal_languages.py`, from its arguments to its table."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.commands.suite import main, row_settings
from hope_jax.layers.rotary import rotary_frequencies
from hope_jax.models.parameter_count import parameter_count
from tests.evaluation.scripts import suite_script

DATA = ["train=16", "validation=8", "test=8", "bin0=2,6", "bin1=7,10", "length=16", "long=2"]
TINY = [
    *DATA,
    "steps=2",
    "batch_size=4",
    "evaluate_every=1",
    "model.width=8",
    "model.num_layers=1",
    "model.mlp_width=4",
    "optimizer.warmup_steps=0",
]


@pytest.fixture
def command(monkeypatch):
    """The script as a module, on one device."""
    yield from suite_script("formal_languages", monkeypatch)


def call(command, folder, *arguments, settings=TINY):
    given = [f"--workdir={folder}", *arguments, *(f"--set={text}" for text in settings)]
    main(command.SUITE, command.__file__, command.__doc__, given)


def lines(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_a_tiny_model_is_trained_tested_and_tabled(command, tmp_path, capsys):
    call(command, tmp_path, "--rows=lstm", "--tasks=parity", "--seeds=1")
    (line,) = lines(tmp_path)
    assert (line["row"], line["task"], line["seed"]) == ("lstm", "parity", 0)
    assert list(line["right"]) == ["Bin0", "Bin1", "16"]
    assert line["steps"] == 2 and np.isfinite(line["loss"])
    assert line["settings"]["model"]["width"] == 8
    said = capsys.readouterr().out
    assert "lstm: runs to report: 1\nlstm, parity, seed 0: step 1, loss " in said
    assert "| row | parameters | state bytes | parity |" in said


@pytest.fixture
def quick(command, monkeypatch):
    """The script with runs that take no time; those that were made and run are noted."""
    noted = []

    def make_run(settings):
        def run(task, sets, seed, report):
            noted.append((settings.model.sequence_layer, task, seed))
            if task == "aa-star":
                return {"right": dict.fromkeys(sets.test, 0.0), "validation": 0.0, "steps": None}
            right = dict(zip(sets.test, (1.0, 0.5 * seed, 0.0), strict=True))
            # Which rate is best differs by row.
            best = {"titans": 3e-3, "attention": 5e-4}[settings.model.sequence_layer]
            validation = 1 - abs(settings.optimizer.learning_rate - best)
            return {"right": right, "validation": validation, "steps": 10 * (seed + 1)}

        return run

    monkeypatch.setattr(command, "SUITE", command.SUITE._replace(make_run=make_run))
    command.noted = noted
    return command


def test_it_goes_on_where_it_was_and_runs_what_is_new(quick, tmp_path):
    call(quick, tmp_path, "--rows=hope", "--tasks=parity", "--seeds=2")
    assert quick.noted == [("titans", "parity", 0), ("titans", "parity", 1)]
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"row": "hope", "ta')  # of one that was killed
    quick.noted.clear()
    call(quick, tmp_path, "--rows=hope,transformer", "--tasks=parity,aa-star", "--seeds=2")
    assert quick.noted == [
        ("titans", "aa-star", 0),
        ("titans", "aa-star", 1),
        ("attention", "parity", 0),
        ("attention", "parity", 1),
        ("attention", "aa-star", 0),
        ("attention", "aa-star", 1),
    ]
    table = (tmp_path / "results.md").read_text()
    assert "| row | parameters | state bytes | parity | (aa)* |\n|---|---|---|---|---|\n" in table
    assert table.count("| 100 / 25 / 0 | 0 / 0 / 0 |") == 2
    assert table.count("| 15 | 2 diverged |") == 2
    assert "* transformer: `model.cms_levels=1`" in table
    ended = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert [text[:12] for text in ended[2:4]] == ['{"row": "hop', '{"row": "hop']
    assert len(ended) == 9 and json.loads(ended[3])["task"] == "aa-star"
    assert "steps = 2 " in table and "optimizer.learning_rate = 0.01 " in table
    quick.noted.clear()
    call(quick, tmp_path, "--rows=hope", "--tasks=parity", "--seeds=3", settings=TINY)
    assert quick.noted == [("titans", "parity", 2)]
    assert "| 100 / 50 / 0 |" in (tmp_path / "results.md").read_text()


def test_rates_are_chosen_by_row_with_seeds_that_are_not_reported(quick, tmp_path):
    some = ["--rows=hope,transformer", "--tasks=parity", "--seeds=2"]
    some += ["--tune=optimizer.learning_rate=5e-4,3e-3", "--selection_seeds=2"]
    call(quick, tmp_path, *some)
    assert quick.noted == [
        (layer, "parity", seed)
        for layer in ("titans", "attention")
        for seed in (0, 1, 0, 1, 2, 3)  # of each rate, and then of the better one
    ]
    ended = {(line["row"], line["tuned"][0][1]) for line in lines(tmp_path) if line["seed"] > 1}
    assert ended == {("hope", 3e-3), ("transformer", 5e-4)}
    table = (tmp_path / "results.md").read_text()
    assert "| row | parameters | state bytes | optimizer.learning_rate | parity |" in table
    assert "| 0.003 | 100 / 125 / 0 |" in table and "| 0.0005 | 100 / 125 / 0 |" in table
    assert "2 seeds that the table does not report" in table
    quick.noted.clear()
    call(quick, tmp_path, *some)
    assert quick.noted == []


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (["--rows=hop"], TINY, "--rows has 'hop'; there are hope, transformer, "),
        (["--tasks=a"], TINY, "--tasks has 'a'; there are parity, "),
        (["--seeds=0"], TINY, "--seeds=0 must be at least 1"),
        ([], [*TINY, "model.titans.eta=1"], "hope.model.titans.eta is no setting; nearest: "),
        ([], [*TINY, "bin0=2"], "bin0=.2,. must be a least and a largest size"),
        ([], [*TINY, "length=9"], "must lie one above the other"),
        ([], [*TINY, "steps=3"], "line 1: hope was run with other settings; give the same"),
        (["--tune=optimizer.rate=1"], TINY, "--tune=optimizer.rate=1 must be KEY=VALUE,VALUE"),
        (["--tune=steps="], TINY, "--tune=steps= must be KEY=VALUE,VALUE"),
        (["--tune=steps=1,0"], TINY, "hope.steps=0 must be a whole number at least 1"),
        (["--set=data=."], TINY, "No such file or directory: 'parity/train_50.src'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    quick, tmp_path, capsys, arguments, settings, said
):
    if "line 1" in said:
        call(quick, tmp_path, "--rows=hope", "--tasks=parity", "--seeds=1")
        quick.noted.clear()
    with pytest.raises(SystemExit) as ended:
        call(quick, tmp_path, "--rows=hope", "--tasks=parity", *arguments, settings=settings)
    assert ended.value.code == 2 and quick.noted == []
    assert re.search(said, capsys.readouterr().err)


def test_the_original_s_strings_take_the_place_of_those_made(command, tmp_path):
    settings = row_settings(command.SUITE, "hope", [*DATA, f"data={tmp_path}"])
    (tmp_path / "aa-star").mkdir()
    for part, text in (("train", "aa"), ("valid", "aaaa"), ("test", "aaaaaaaa")):
        (tmp_path / "aa-star" / f"{part}_50.src").write_text(text)
        (tmp_path / "aa-star" / f"{part}_50.tgt").write_text("01" * (len(text) // 2))
    sets = command.make_data(settings, "aa-star", 0)
    assert sets.train == ["aa"] and sets.validation == {"Bin0": ["aaaa"], "Bin1": ["a" * 8]}
    assert sets.test == {"Bin0": ["aaaa"], "Bin1": ["a" * 8], "16": ["a" * 16]}


def test_all_rows_have_hope_s_number_of_parameters(command):
    wanted = parameter_count(command.HOPE)
    for row in command.ROWS:
        count = parameter_count(row_settings(command.SUITE, row).model)
        assert abs(count / wanted - 1) <= 0.02, row


def test_attention_sees_no_positions(command):
    settings = row_settings(command.SUITE, "transformer")
    frequencies = rotary_frequencies(32, 1e4, settings.model.rotary_scaling)
    assert 1000 * frequencies.max() < 1e-6


def test_the_lstm_is_flax_s_reads_pieces_and_forgets_documents(command):
    layer = command.LSTM(width=4)
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    apply = jax.jit(layer.apply)
    y, _ = apply(variables, x)
    rnn = nn.RNN(nn.OptimizedLSTMCell(4))
    params = {"cell": variables["params"]["OptimizedLSTMCell_0"]}
    np.testing.assert_allclose(y, jax.jit(rnn.apply)({"params": params}, x), rtol=1e-6)
    first, state = apply(variables, x[:, :3])
    rest, _ = apply(variables, x[:, 3:], state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), y, rtol=1e-6)
    reset = jnp.zeros((2, 5), bool).at[0, 2].set(True)
    parted, _ = apply(variables, x, None, reset)
    np.testing.assert_allclose(parted[1], y[1], rtol=1e-6)
    np.testing.assert_allclose(parted[0, 2:], apply(variables, x[:, 2:])[0][0], rtol=1e-6)
