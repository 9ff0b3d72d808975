"""How fast a run says that it is."""

import io
import math
import re

import jax
import pytest
from rich.console import Console

from hope_jax.training import progress
from hope_jax.training.progress import TrainingProgress, _Clock


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until it is set."""
    times = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: times[0])
    return times


def test_steps_that_end_with_the_one_before_do_not_count(now):
    """On a CPU a step is over when it is handed in: the last two are told of at one moment."""
    clock, rates = _Clock(tokens=100), []
    for step in range(1, 5):
        now[0] = 2.0 * (step + 1)  # the next one is over, too
        rates.append(clock.tick(step, under_way=True))
    rates.append(clock.tick(5, under_way=False))
    assert math.isnan(rates[0]) and rates[1:] == [50.0] * 4
    assert clock.left(3) == 6.0


def test_a_checkpoint_after_each_step_or_every_second_one(now):
    each, second = _Clock(tokens=100), _Clock(tokens=100)
    for step in range(1, 9):
        now[0] = 2.0 * step
        rate = each.tick(step, under_way=False)
        if step % 2:
            now[0] = 2.0 * (step + 1)
            other = second.tick(step, under_way=True)
        else:
            other = second.tick(step, under_way=False)
    assert (rate, other) == (50.0, 50.0)
    each.restart()
    now[0] = 1000.0
    assert each.tick(9, under_way=True) == 50.0  # what is known, until there are two again
    now[0] = 1004.0
    assert each.tick(10, under_way=True) == 25.0


def test_a_line_says_loss_rate_speed_time_left_and_memory(now):
    console = Console(file=io.StringIO(), width=200)
    told = TrainingProgress(console, first=0, steps=9, tokens=3000, every=2, devices=jax.devices())
    with told:
        for step in range(1, 5):
            now[0] = 1.5 * step
            told.step(step, 2.0, 0.01, under_way=True)
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == [
        "compiling the training step ...",
        "compiled, and the first step taken, in 1.5 s",
    ]
    assert len(lines) == 4  # of every second step
    assert re.fullmatch(
        r"step 4/9  loss 2.0000  rate 0.01  2,000 tokens/s  8 s left  memory \S+ .B", lines[-1]
    )
