"""Lines of metrics that are torn, doubled, or replaced."""

import json
import os
import subprocess
import sys
import time

import pytest

from hope_jax.runs.metrics import MetricsWriter, read_metrics
from tests.runs.folders import read_board


def test_a_bad_line_is_left_out_and_those_after_it_stay(tmp_path):
    good = [{"step": step, "loss": 1.0} for step in range(1, 5)]
    texts = [json.dumps(line).encode() for line in good]
    torn = [b"", b'{"step": 2, "lo', b"[1]", b'{"loss": 3}', b"\xff\xfe", b'{"step": "x"}']
    content = b"\n".join([texts[0], texts[1], *torn, texts[2], texts[3], b'{"step": 5'])
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert read_metrics(str(tmp_path)) == good
    writer = MetricsWriter(str(tmp_path), 3)
    writer.write(4, loss=2.0)
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*good[:3], {"step": 4, "loss": 2.0}]


def test_lines_are_replaced_in_one_move(tmp_path, monkeypatch):
    """A kill while a start drops the later lines: the old file is still there, whole."""
    text = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(40))
    (tmp_path / "metrics.jsonl").write_text(text)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hope_jax.data.whole_file.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(str(tmp_path), 30)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_line_is_on_disk_when_it_is_written(tmp_path):
    """No close and no flush follows, as after a kill."""
    killed = MetricsWriter(str(tmp_path), 0)
    for step in (1, 2, 3):
        killed.write(step, loss=float(step))
    assert len(read_metrics(str(tmp_path))) == 3
    assert read_board(tmp_path) == {("loss", step): [float(step)] for step in (1, 2, 3)}
    # A checkpoint of step 2 is where the run goes on from.
    writer = MetricsWriter(str(tmp_path), 2)
    writer.write(3, loss=7.0)
    writer.close()
    assert read_board(tmp_path) == {("loss", 1): [1.0], ("loss", 2): [2.0], ("loss", 3): [7.0]}


def test_a_clock_that_is_set_back_hides_nothing(tmp_path, monkeypatch):
    """Of a run that was killed after step 3 and goes on from step 2, a day before."""
    killed = MetricsWriter(str(tmp_path), 0)
    for step in (1, 2, 3):
        killed.write(step, loss=float(step))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86_400)
    writer = MetricsWriter(str(tmp_path), 2)
    writer.write(3, loss=7.0)
    writer.close()
    assert read_board(tmp_path) == {("loss", 1): [1.0], ("loss", 2): [2.0], ("loss", 3): [7.0]}
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 7.0]


def test_final_lines_are_replaced(tmp_path):
    final = {"validation_loss": 2.0, "bits_per_byte": 3.0}
    for value in (3.0, 3.0, 4.0):
        writer = MetricsWriter(str(tmp_path), 6)
        writer.write_final(6, **{**final, "bits_per_byte": value})
        writer.close()
        assert read_metrics(str(tmp_path)) == [{"step": 6, **final, "bits_per_byte": value}]
    assert read_board(tmp_path)["bits_per_byte", 6] == [3.0, 4.0]


def test_pytorch_is_not_imported_for_tensorboard_and_can_be_afterwards(tmp_path):
    (tmp_path / "torch.py").write_text("Tensor = list")
    code = "import sys, hope_jax.runs.metrics; assert 'torch' not in sys.modules; import torch"
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=True
    )
