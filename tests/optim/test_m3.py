"""M3 against a NumPy transcription of Algorithm 1, its limits, its state and its errors."""

import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from hope_jax.optim import adamuon, m3, scale_by_m3

from .test_newton_schulz import numpy_newton_schulz, random

QUINTIC = [(3.4445, -4.7750, 2.0315)]


def numpy_algorithm_1(gradients, w, rate, b1, b2, b3, alpha, f, steps, eps):
    """Algorithm 1 as printed: slow steps outside, steps inside, sums that never decay."""
    m1, m2, v, trajectory = 0 * w, 0 * w, 0 * w, []
    for k in range(0, len(gradients), f):
        m2 = m2 + b3 * sum(gradients[max(k - f, 0) : k], 0 * w)
        o2 = numpy_newton_schulz(m2, steps, QUINTIC)
        for g in gradients[k : k + f]:
            m1 = m1 + b1 * g
            v = v + b2 * g**2
            o1 = numpy_newton_schulz(m1, steps, QUINTIC)
            w = w - rate * (o1 + alpha * o2) / (np.sqrt(v) + eps)
            trajectory.append(w)
    return trajectory


def numpy_ema(gradients, w, rate, b1, b2, b3, alpha, f, steps, eps, rms, of_update, nesterov):
    """The averaging form, every average written as the weighted sum that it is.

    A second moment of gradients has its matrix's mean in it, by a share of 0.8^t. With `nesterov` the
    last gradient has the weight of one more: as Dozat's NAdam, 1 - b1 over the weights' sum so far,
    beside b1 times the average, whose sum of weights counts one gradient more than there is.
    """

    def average(history, decay):
        weights = decay ** np.arange(len(history))[::-1]
        return sum(x * y for x, y in zip(weights, history, strict=True)) / weights.sum()

    trajectory, directions = [], []
    for t in range(1, len(gradients) + 1):
        fast = average(gradients[:t], b1)
        if nesterov:
            fast = b1 * fast * (1 - b1**t) / (1 - b1 ** (t + 1))
            fast = fast + (1 - b1) * gradients[t - 1] / (1 - b1**t)
        o = numpy_newton_schulz(fast, steps, QUINTIC)
        chunks = [np.mean(gradients[i : i + f], axis=0) for i in range(0, (t - 1) // f * f, f)]
        if chunks:
            o = o + alpha * numpy_newton_schulz(average(chunks, b3), steps, QUINTIC)
        directions.append(o)
        v = average([abs(x) ** 2 for x in (directions if of_update else gradients[:t])], b2)
        if not of_update:
            v = (1 - 0.8**t) * v + 0.8**t * np.mean(v)
        u = o / (np.sqrt(v) + eps)
        w = w - rate * rms * u / np.sqrt(np.mean(abs(u) ** 2))
        trajectory.append(w)
    return trajectory


def trajectory(optimizer, gradients, w):
    update = jax.jit(optimizer.update)
    state, result = optimizer.init(w), []
    for g in gradients:
        updates, state = update(g, state, w)
        w = optax.apply_updates(w, updates)
        result.append(w)
    return result


def updates_of(optimizer, gradients):
    """The updates for one gradient after another, in one program."""

    @jax.jit
    def run(gradients):
        state = optimizer.init(gradients[0])
        return jax.lax.scan(lambda s, g: optimizer.update(g, s, g)[::-1], state, gradients)[1]

    return np.asarray(run(jnp.asarray(gradients)))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_literal_form_is_algorithm_1_over_50_steps(shape):
    gradients = np.random.default_rng(0).normal(size=(50, *shape))
    w = np.random.default_rng(1).normal(size=shape)
    constants = dict(b1=0.9, b2=0.7, b3=0.3, alpha=0.8, eps=1e-3)
    expected = numpy_algorithm_1(list(gradients), w, 0.1, f=7, steps=5, **constants)
    with jax.enable_x64(True):
        optimizer = m3(
            0.1,
            slow_every=7,
            accumulate="sum",
            scale="literal",
            nesterov=False,
            slow_dtype="float64",
            **constants,
        )
        result = trajectory(optimizer, jnp.asarray(gradients), jnp.asarray(w))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("second_moment", ["gradient", "update"])
def test_averaging_form_over_50_steps(second_moment, nesterov):
    gradients = np.random.default_rng(0).normal(size=(50, 3, 5))
    w = np.random.default_rng(1).normal(size=(3, 5))
    constants = dict(b1=0.9, b2=0.7, b3=0.6, alpha=0.8, eps=1e-3, rms=0.3, nesterov=nesterov)
    expected = numpy_ema(
        list(gradients), w, 0.1, f=4, steps=5, of_update=second_moment == "update", **constants
    )
    with jax.enable_x64(True):
        optimizer = m3(
            0.1, slow_every=4, second_moment=second_moment, slow_dtype="float64", **constants
        )
        result = trajectory(optimizer, jnp.asarray(gradients), jnp.asarray(w))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def test_first_updates_are_bounded_without_warm_up():
    """Gaussian gradients: the square of one is near zero somewhere in any large matrix."""
    sizes = np.abs(updates_of(scale_by_m3(ns_steps=3), random(24, 96, 96)))
    np.testing.assert_allclose(np.sqrt((sizes**2).mean(axis=(1, 2))), 0.2, rtol=1e-4)
    # A Gaussian's own largest of 9,216 is 4 times its root mean square.
    assert sizes.max() < 8 * 0.2 and sizes[0].max() < 5 * 0.2


def test_late_updates_are_those_of_the_second_moment_alone():
    gradients = np.asarray(random(120, 4, 5), np.float64) ** 3
    v = np.zeros((4, 5))
    for t, g in enumerate(gradients, 1):
        v = 0.95 * v + 0.05 * g**2
        expected = np.sqrt(v / (1 - 0.95**t)) + 1e-8
    with jax.enable_x64(True):
        divided = updates_of(scale_by_m3(), gradients)[-1]
        muon = updates_of(scale_by_m3(second_moment="none"), gradients)[-1]
    expected = muon / expected
    expected *= 0.2 / np.sqrt((expected**2).mean())
    np.testing.assert_allclose(divided, expected, rtol=1e-7)


def test_an_entry_without_gradients_stays_where_it_is():
    """A mask makes gradients zero, which orthogonalisation does not keep."""
    mask = np.tril(np.ones((5, 5)))
    result = updates_of(scale_by_m3(), mask * np.asarray(random(100, 5, 5)))
    assert not (result * (1 - mask)).any()
    assert np.abs(result).max() < 1.0 and np.abs(result * mask).min(axis=0)[mask > 0].all()
    assert np.isnan(updates_of(scale_by_m3(), np.full((2, 3, 3), np.nan, np.float32))).all()
    tiny = updates_of(scale_by_m3(), 1e-25 * random(3, 4, 5))
    np.testing.assert_allclose(np.sqrt((tiny**2).mean(axis=(1, 2))), 0.2, rtol=1e-4)


def test_one_huge_gradient_is_survived_and_forgotten():
    gradients = np.repeat(np.asarray(random(2, 4, 5)), [20, 140], axis=0)
    gradients[10] *= 1e20
    result = updates_of(scale_by_m3(b1=0.5, b2=0.5, b3=0.5, slow_every=1), gradients)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(np.sqrt((result**2).mean(axis=(1, 2))), 0.2, rtol=1e-4)
    straight = updates_of(scale_by_m3(b1=0.5, b2=0.5, b3=0.5, slow_every=1), gradients[20:])
    np.testing.assert_allclose(result[-1], straight[-1], atol=1e-3)


def test_sums_of_bfloat16_gradients_lose_nothing():
    """An update changes each of these sums by less than half of a bfloat16 number's last place."""
    optimizer = m3(0.1, b1=0.999, b2=0.999, b3=0.9, slow_every=1024)
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "bias": jnp.ones(2, jnp.bfloat16)}

    @jax.jit
    def run(params):
        step = lambda state, _: (optimizer.update(params, state, params)[1], None)
        return jax.lax.scan(step, optimizer.init(params), length=1024)[0]

    state = run(params)
    share = 1 - 0.999**1024
    for name, expected in (("m1", share), ("m2", 0.1), ("v", share)):
        np.testing.assert_allclose(optax.tree.get(state, name)["w"], expected, rtol=1e-3)
    np.testing.assert_allclose(optax.tree.get(state, "nu")["bias"], share, rtol=1e-3)


def test_float16_gradients_of_any_size_give_the_update_of_float32():
    gradients = random(3, 4, 5)
    expected = updates_of(scale_by_m3(), gradients)
    for factor in (1e-4, 1e4):
        low = updates_of(scale_by_m3(), (factor * gradients).astype(jnp.float16))
        assert low.dtype == np.float16
        np.testing.assert_allclose(low, expected, atol=3e-2)
    # Sums that are no float16 numbers any more.
    printed = updates_of(scale_by_m3(accumulate="sum"), jnp.full((4, 2, 2), 4e4, jnp.float16))
    np.testing.assert_allclose(printed, 0.2, atol=1e-3)


def test_complex_weights_in_every_form():
    real, imaginary = np.random.default_rng(0).normal(size=(2, 9, 3, 5))
    gradients = real + 1j * imaginary
    w = np.zeros((3, 5), complex)
    constants = dict(b1=0.9, b2=0.7, b3=0.6, alpha=0.8, eps=1e-3, rms=0.3, nesterov=True)
    with jax.enable_x64(True):
        for form in ("gradient", "update"):
            expected = numpy_ema(
                list(gradients), w, 1.0, f=4, steps=5, of_update=form == "update", **constants
            )
            optimizer = scale_by_m3(slow_every=4, second_moment=form, **constants)
            result = updates_of(optimizer, gradients)
            np.testing.assert_allclose(-np.cumsum(result, axis=0), expected, atol=1e-10)
    complex_vector = {"a": {"b": jnp.ones(3, complex)}}
    updates, _ = m3(0.1).update(complex_vector, m3(0.1).init(complex_vector), complex_vector)
    assert jnp.isfinite(updates["a"]["b"]).all()
    with pytest.raises(ValueError, match="a/b: mu_dtype=bfloat16 would drop the imaginary parts"):
        m3(0.1, mu_dtype="bfloat16").init(complex_vector)


def test_cached_direction_in_bfloat16_costs_no_more_than_its_rounding():
    gradients, w = list(random(20, 4, 6)), random(4, 6, seed=1)
    low = trajectory(m3(0.1, slow_every=3), gradients, w)[-1]
    full = trajectory(m3(0.1, slow_every=3, slow_dtype="float32"), gradients, w)[-1]
    difference = np.abs(low - full).max()
    assert 0 < difference < 2e-3


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_slow_and_second_moment_it_is_muon(nesterov):
    gradients, w = list(random(12, 4, 6)), random(4, 6, seed=1)
    ours = scale_by_m3(alpha=0, second_moment="none", scale="literal", nesterov=nesterov)
    muon = optax.contrib.scale_by_muon(
        nesterov=nesterov, weight_dimension_numbers=MuonDimensionNumbers()
    )
    np.testing.assert_allclose(
        trajectory(ours, gradients, w), trajectory(muon, gradients, w), atol=2e-4, rtol=1e-4
    )


def test_without_newton_schulz_and_slow_it_is_adam():
    gradients, w = list(random(12, 4, 6)), random(4, 6, seed=1)
    for nesterov in (False, True):
        ours = m3(0.1, b1=0.9, b2=0.99, alpha=0, ns_steps=0, scale="literal", nesterov=nesterov)
        adam = optax.adam(0.1, b1=0.9, b2=0.99, nesterov=nesterov)
        np.testing.assert_allclose(
            trajectory(ours, gradients, w), trajectory(adam, gradients, w), atol=1e-5
        )


def test_adamuon_is_the_published_step():
    gradients, w = np.random.default_rng(0).normal(size=(6, 4, 4)), np.zeros((4, 4))
    m, v, expected = 0.0, 0.0, w
    for t, g in enumerate(gradients, 1):
        m = 0.95 * m + g
        o = numpy_newton_schulz(m, 5, QUINTIC)
        v = 0.95 * v + 0.05 * o**2
        u = o / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        expected = expected - 0.1 * 0.2 * np.sqrt(u.size) * u / np.linalg.norm(u)
    with jax.enable_x64(True):
        result = trajectory(adamuon(0.1), jnp.asarray(gradients), jnp.asarray(w))[-1]
    np.testing.assert_allclose(result, expected, atol=1e-10)


def test_default_step_has_the_wanted_root_mean_square_whatever_the_gradient():
    params = {"w": random(4, 6), "stack": random(3, 5, 4)}
    numbers = {"w": MuonDimensionNumbers(), "stack": MuonDimensionNumbers(1, 2)}
    optimizer = m3(1.0, rms=0.3, weight_dimension_numbers=numbers)
    for factor in (1e-6, 1.0, 1e6):
        gradients = jax.tree.map(lambda p, factor=factor: factor * p, params)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        assert jnp.sqrt(jnp.mean(updates["w"] ** 2)) == pytest.approx(0.3, rel=1e-3)
        each = jnp.sqrt(jnp.mean(updates["stack"] ** 2, axis=(1, 2)))
        np.testing.assert_allclose(each, 0.3, rtol=1e-3)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert not any(u.any() for u in jax.tree.leaves(updates))


def test_slow_orthogonalisation_runs_only_when_due(monkeypatch):
    module = sys.modules["hope_jax.optim.newton_schulz"]
    runs = []
    iterate = module._iterate_local

    def counted(stack, *args):
        jax.debug.callback(lambda: runs.append(1))
        return iterate(stack, *args)

    monkeypatch.setattr(module, "_iterate_local", counted)
    optimizer = m3(0.1, slow_every=4)
    update = jax.jit(optimizer.update)
    w = random(4, 6)
    state, cached = optimizer.init(w), []
    for i in range(9):
        _, state = update(random(4, 6, seed=i), state, w)
        cached.append(optax.tree.get(state, "o2").astype(jnp.float32))
    jax.effects_barrier()
    assert len(runs) == 9 + 2
    changed = [i for i in range(1, 9) if (cached[i] != cached[i - 1]).any()]
    assert not cached[0].any() and changed == [3, 7]


def test_state_holds_no_more_than_promised():
    w = random(4, 6).astype(jnp.bfloat16)
    size = {field: value.dtype.itemsize for field, value in scale_by_m3().init(w)._asdict().items()}
    assert size == {"count": 4, "m1": 4, "m2": 4, "v": 4, "o2": 2}
    state = scale_by_m3(mu_dtype="bfloat16").init(w)
    assert state.m1.dtype == state.o2.dtype == jnp.bfloat16 and state.m2.dtype == jnp.float32
    adam = m3(0.1, mu_dtype="bfloat16").init({"bias": w[0]})
    assert optax.tree.get(adam, "mu")["bias"].dtype == jnp.bfloat16
    assert optax.tree.get(adam, "nu")["bias"].dtype == jnp.float32
    state = scale_by_m3(alpha=0, second_moment="none").init(w)
    assert state.m2 == state.o2 == state.v == ()


def test_stacked_and_multi_head_weights_are_the_matrices_they_stand_for():
    scanned, heads = random(3, 4, 6), random(4, 2, 5, seed=1)
    params = {"scanned": scanned, "query": heads, "out": random(2, 5, 4, seed=2)}
    numbers = {
        "scanned": MuonDimensionNumbers(1, 2),
        "query": MuonDimensionNumbers(0, (1, 2)),
        "out": MuonDimensionNumbers((0, 1), -1),
    }
    apart = {
        "query": heads.reshape(4, 10),
        "out": params["out"].reshape(10, 4),
        **{f"layer_{i}": scanned[i] for i in range(3)},
    }
    together = m3(0.1, slow_every=2, weight_dimension_numbers=numbers)
    separate = m3(0.1, slow_every=2)
    state, state_apart = together.init(params), separate.init(apart)
    for _ in range(4):
        updates, state = together.update(params, state, params)
        updates_apart, state_apart = separate.update(apart, state_apart, apart)
    for i in range(3):
        np.testing.assert_allclose(updates["scanned"][i], updates_apart[f"layer_{i}"], atol=1e-5)
    for name in ("query", "out"):
        np.testing.assert_allclose(
            updates[name].reshape(apart[name].shape), updates_apart[name], atol=1e-5
        )


def test_everything_else_is_adamw():
    params = {"bias": random(5), "embedding": random(7, 3, seed=1), "w": random(4, 4, seed=2)}
    ours = m3(
        0.1,
        eps=1e-2,
        weight_decay=0.5,
        adam_b1=0.8,
        adam_b2=0.9,
        adam_eps_root=1e-2,
        adam_weight_decay=0.1,
        adam_learning_rate=0.02,
    )
    theirs = optax.nadamw(0.02, b1=0.8, b2=0.9, eps=1e-2, eps_root=1e-2, weight_decay=0.1)
    update = jax.jit(ours.update)
    state, their_state = ours.init(params), theirs.init(params)
    for step in range(3):
        gradient = jax.tree.map(lambda p, step=step: p * (step - 0.5), params)
        updates, state = update(gradient, state, params)
        expected, their_state = theirs.update(gradient, their_state, params)
    for name in ("bias", "embedding"):
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5)
    assert not np.allclose(updates["w"], expected["w"])
    # One learning rate for both unless AdamW has its own.
    first, _ = m3(0.02, nesterov=False).update(params, m3(0.02).init(params), params)
    np.testing.assert_allclose(first["bias"], -0.02 * jnp.sign(params["bias"]), rtol=1e-5)


def test_weight_decay_and_its_mask():
    params = {"a": random(4, 4), "b": random(4, 4, seed=1), "bias": jnp.ones(3)}
    plain = m3(0.1).update(params, m3(0.1).init(params), params)[0]
    for mask in (
        {"a": True, "b": False, "bias": False},
        lambda p: {"a": True, "b": False, "bias": False},
    ):
        decayed_by = m3(0.1, weight_decay=0.5, mask=mask)
        decayed = decayed_by.update(params, decayed_by.init(params), params)[0]
        np.testing.assert_allclose(decayed["a"], plain["a"] - 0.05 * params["a"], atol=1e-6)
        np.testing.assert_allclose(decayed["b"], plain["b"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": "mean"}, "accumulate must be one of .*got 'mean'"),
        ({"scale": "none"}, "scale must be one of"),
        ({"second_moment": "v"}, "second_moment must be one of"),
        ({"slow_every": 0}, "slow_every must be a whole number of at least 1, got 0."),
        ({"slow_every": 2.5}, "slow_every must be a whole number of at least 1, got 2.5."),
        ({"b1": -1}, r"b1 must be in \[0, 1\), got -1."),
        ({"b2": 1}, r"b2 must be in \[0, 1\), got 1."),
        ({"b3": float("nan")}, r"b3 must be in \[0, 1\), got nan."),
        ({"b1": 0, "accumulate": "sum"}, "b1 must be a finite number above 0, got 0."),
        ({"alpha": -0.1}, "alpha must be a finite number of at least 0, got -0.1."),
        ({"eps": np.float32(-1)}, "eps must be a finite number above 0, got -1.0."),
        ({"rms": float("inf")}, "rms must be a finite number above 0, got inf."),
        ({"weight_decay": -1}, "weight_decay must be a finite number of at least 0"),
        ({"adam_b2": 1.0}, "adam_b2 must be in"),
        ({"ns_steps": 2.0}, "must be a Python int"),
    ],
)
def test_errors_of_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        m3(0.1, **options).init(jnp.ones((2, 2)))


def test_printed_sums_take_any_weight():
    m3(0.1, b1=1, b2=1.0, b3=3, accumulate="sum", scale="literal")


def test_adamuon_has_m3s_options_by_name():
    known = inspect.signature(adamuon).parameters
    assert {"ns_steps", "weight_decay", "mask"} < set(known) and "options" not in known
    assert not {"alpha", "second_moment"} & set(known)
    assert known["rms"].default == 0.2 and known["b1"].default == 0.95


def test_scale_by_m3_names_a_leaf_that_is_no_matrix():
    with pytest.raises(ValueError, match=r"blocks/0/b: shape \(6,\) is not a weight matrix"):
        scale_by_m3().init({"blocks": [{"b": jnp.ones(6), "w": jnp.ones((4, 6))}]})


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("accumulate", ["ema", "sum"])
def test_without_newton_schulz_the_two_momenta_add_in_their_own_units(accumulate, nesterov):
    """Newton-Schulz hides the momenta's scale; without it the printed factors show."""
    gradients, f = np.random.default_rng(0).normal(size=(7, 3, 4)), 3
    chunks = [gradients[0:3], gradients[3:6]]
    if accumulate == "ema":
        weights = 0.8 ** np.arange(7)[::-1]
        fast = np.tensordot(weights / weights.sum(), gradients, axes=1)
        if nesterov:
            fast = fast * 0.8 * (1 - 0.8**7) / (1 - 0.8**8) + 0.2 * gradients[6] / (1 - 0.8**7)
        slow = (0.6 * chunks[0].mean(axis=0) + chunks[1].mean(axis=0)) / 1.6
    else:
        fast, slow = 0.8 * gradients.sum(axis=0), 0.6 * gradients[:6].sum(axis=0)
        fast = fast + nesterov * 0.8 * gradients[6]
    with jax.enable_x64(True):
        optimizer = scale_by_m3(
            b1=0.8,
            b3=0.6,
            alpha=0.5,
            slow_every=f,
            ns_steps=0,
            slow_dtype="float64",
            accumulate=accumulate,
            scale="literal",
            second_moment="none",
            nesterov=nesterov,
        )
        state = optimizer.init(jnp.zeros((3, 4)))
        for gradient in jnp.asarray(gradients):
            updates, state = optimizer.update(gradient, state)
    np.testing.assert_allclose(updates, fast + 0.5 * slow, atol=1e-12)
