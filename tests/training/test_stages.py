"""Training in stages against loops written out, and what is read of which stage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training import stages
from hope_jax.training.stages import Training, train_in_stages, windows

MODEL = LanguageModel(
    LanguageModelConfig(
        vocab_size=16,
        width=8,
        num_layers=1,
        num_heads=1,
        mlp_width=8,
        sequence_layer="attention",
    )
)
TEXTS = [np.random.default_rng(seed).integers(16, size=7) for seed in (0, 1)]
RATE = 0.01


@pytest.fixture(scope="module")
def params():
    made = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return dict(nn.unbox(made))


@pytest.fixture(scope="module")
def loss():
    """Of one piece of six tokens, mean over them."""

    def of(params, text):
        logits, _ = MODEL.apply({"params": params}, text[None, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits[0], text[1:]).mean()

    return of


def close(made, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), made, expected
    )


@pytest.mark.parametrize("strength", [0.0, 300.0])
def test_each_stage_is_descended_with_a_new_adam_and_a_pull_back_to_the_last(
    params, loss, strength
):
    training = Training(RATE, readings=3, window=6, batch=1, strength=strength)
    made = list(train_in_stages(MODEL, params, TEXTS, training))
    gradient = jax.jit(jax.grad(loss))
    anchor, fisher = params, jax.tree.map(jnp.zeros_like, params)
    for text, after in zip(TEXTS, made, strict=True):
        adam = optax.adam(RATE)
        state = adam.init(params)
        for _ in range(3):
            pulled = jax.tree.map(
                lambda g, w, a, f: g + strength * f * (w - a),
                gradient(params, text),
                params,
                anchor,
                fisher,
            )
            updates, state = adam.update(pulled, state)
            params = optax.apply_updates(params, updates)
        close(after, params)
        # Of the only piece's summed loss.
        mattered = jax.tree.map(lambda g: (6 * g) ** 2, gradient(params, text))
        anchor, fisher = params, jax.tree.map(jnp.add, fisher, mattered)


def test_the_pull_is_felt(params):
    """So that the test above could fail."""
    free, held = (
        list(train_in_stages(MODEL, params, TEXTS, Training(RATE, 3, 6, 1, strength=strength)))[-1]
        for strength in (0.0, 300.0)
    )
    assert jnp.abs(free["embedding"] - held["embedding"]).max() > 1e-3


@pytest.fixture
def seen(monkeypatch):
    """The batches of each step, in the place of training."""
    batches = []
    step = lambda model, params, state, batch, *numbers: (params, state)
    monkeypatch.setattr(
        stages, "_step", lambda *given: batches.append(given[3].tokens.tolist()) or step(*given)
    )
    return batches


LONG = [np.arange(41) + 100 * stage for stage in range(3)]  # ten pieces of four


def stage_of(piece):
    return piece[0] // 100


def test_all_is_read_as_often_in_another_order(seen, params):
    assert len(list(train_in_stages(MODEL, params, LONG, Training(RATE, 2, 4, 2)))) == 3
    assert len(seen) == 30 and {len(batch) for batch in seen} == {2}
    pieces = [tuple(piece) for batch in seen for piece in batch]
    first, again = pieces[:10], pieces[10:20]
    assert set(first) == set(again) == {tuple(range(at, at + 4)) for at in range(0, 40, 4)}
    assert first != again
    assert [stage_of(piece) for piece in pieces] == [0] * 20 + [1] * 20 + [2] * 20


def test_half_is_rehearsed_from_few_pieces_of_earlier_stages(seen, params):
    training = Training(RATE, readings=20, window=4, batch=2, memory=4)
    list(train_in_stages(MODEL, params, LONG, training))
    assert len(seen) == 300  # as many as without
    assert all(stage_of(piece) == 0 for batch in seen[:100] for piece in batch)
    for stage, kept in ((1, {0: 4}), (2, {0: 2, 1: 2})):
        part = seen[100 * stage : 100 * stage + 100]
        assert all(stage_of(new) == stage for new, _ in part)
        old = {tuple(piece) for _, piece in part}
        counts = {one: sum(stage_of(piece) == one for piece in old) for one in range(stage)}
        assert counts == kept


def test_each_token_but_the_first_is_a_target_once():
    pieces = windows(np.arange(1, 10), 3)
    assert pieces.targets[pieces.weights > 0].tolist() == list(range(2, 10))
    assert pieces.tokens[pieces.weights > 0].tolist() == list(range(1, 9))
    assert pieces.tokens.shape == (3, 3) and windows(np.arange(7), 3).weights.all()


def test_what_cannot_be_is_refused(params):
    for training, said in (
        (Training(RATE, readings=0), "readings=0, batch=2 and window=32 must be at least 1"),
        (Training(RATE, batch=3, memory=4), "batch=3 has no half to be drawn from memory"),
    ):
        with pytest.raises(ValueError, match=said):
            next(train_in_stages(MODEL, params, TEXTS, training))
