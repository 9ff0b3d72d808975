"""The picture of a run's losses."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from hope_jax.runs import picture


@pytest.mark.parametrize(
    ("steps", "names"),
    [
        (0, []),
        (20, ["training"]),
        (200, ["training, single batches", "training, mean of 60 steps"]),
    ],
)
def test_what_is_drawn(tmp_path, monkeypatch, steps, names):
    lines = [{"step": 10 * n, "loss": 1 / n} for n in range(1, steps + 1)]
    if steps:
        lines += [{"step": 2000, "validation_loss": 0.75, "bits_per_byte": 1.25}]
        names = [*names, "validation"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "a$b$").mkdir()
    (tmp_path / "a$b$" / "metrics.jsonl").write_text(text)
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    assert picture.plot_losses(str(tmp_path / "a$b$")).is_file()
    monkeypatch.undo()
    axes = drawn[0].axes[0]
    assert [line.get_label() for line in axes.lines] == names
    # Also without colours: no two lines alike.
    looks = {(line.get_linestyle(), line.get_linewidth(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(names)
    last = ": validation 0.750 nats per token, 1.250 bits per byte at step 2,000" if steps else ""
    assert axes.get_title() == "a$b$" + last
    plt.close(drawn[0])


def test_the_mean_is_over_the_neighbours():
    values = np.random.default_rng(0).random(20)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(20)]
    np.testing.assert_allclose(picture.running_mean(values, 5), expected)
