"""Levels that learn while the model reads, against loops that do one thing after the other."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.models import LanguageModel, LanguageModelConfig, init_state
from hope_jax.optim.dense_inputs import apply_with_dense_inputs
from tests.models.exact_attention import exact_attention

VOCAB, BATCH, TOKENS = 7, 2, 11
PLAIN = LanguageModelConfig(
    vocab_size=VOCAB,
    width=4,
    num_layers=3,
    num_heads=1,
    mlp_width=6,
    sequence_layer="attention",
    attention_window=5,
    cms_levels=2,
    dtype="float64",
    param_dtype="float64",
    loss_chunk=3,
)
TEXT = np.random.default_rng(1).integers(VOCAB, size=(BATCH, TOKENS + 1))
RESET = np.zeros((BATCH, TOKENS), bool)
RESET[1, [0, 3, 4, 5]] = True  # at a chunk's start, within one, twice in one


def settings(**changes):
    return {"chunks": (2, 4), "step_size": (0.5, 0.3), "blocks": 2, **changes}


CASES = {
    "sequential": (PLAIN, settings()),
    "independent": (dataclasses.replace(PLAIN, cms_connection="independent"), settings()),
    "nested": (dataclasses.replace(PLAIN, cms_connection="nested"), settings()),
    "three_levels_with_momentum": (
        dataclasses.replace(PLAIN, cms_levels=3, cms_connection="nested", cms_order="slow_to_fast"),
        settings(chunks=(1, 2, 4), step_size=0.4, optimizer="momentum", decay=0.1),
    ),
    "dgd": (PLAIN, settings(chunks=(3, 6), optimizer="dgd", learned_step=False)),
    "bounded_change": (PLAIN, settings(largest_change=0.1, decay=0.1, optimizer="momentum")),
    "levels_over_depth": (
        dataclasses.replace(PLAIN, cms_levels=1),
        settings(blocks=3, chunks=(2, 6)),
    ),
    "titans": (
        dataclasses.replace(
            PLAIN,
            sequence_layer="titans",
            titans={
                "adaptive": ("k",),
                "network": "matrix",
                "momentum": "none",
                "memory_chunk": 2,
                "generator_chunk": 4,
                "convolution": 2,
            },
        ),
        settings(),
    ),
    "local": (PLAIN, settings(objective="local")),
    "local_independent": (
        dataclasses.replace(PLAIN, cms_levels=3, cms_connection="independent"),
        settings(objective="local", chunks=(2, 2, 6), step_size=0.6, learned_step=False),
    ),
    "local_nested": (
        dataclasses.replace(PLAIN, cms_levels=3, cms_connection="nested"),
        settings(objective="local", chunks=(1, 3, 6), step_size=0.6, optimizer="momentum"),
    ),
    "cut": (PLAIN, settings(gradient_steps=0)),
    "truncated": (PLAIN, settings(gradient_steps=2, optimizer="momentum")),
}


@pytest.fixture
def exact(x64, monkeypatch):
    """Float64 throughout."""
    monkeypatch.setattr(jax.nn, "dot_product_attention", exact_attention)


@functools.cache
def made(name, **changes):
    plain, learning = CASES[name]
    model = LanguageModel(dataclasses.replace(plain, in_context={**learning, **changes}))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT[:, :2])["params"])
    if "log_step" in params:
        params["log_step"] = 0.3 * jax.random.normal(jax.random.key(1), params["log_step"].shape)
    return model, params


MAPS = ("gate", "up", "down")
KEPT = ("embedding", "blocks", "norm")  # parameters of a model that does not learn in context


def inserted(slow, fast):
    """Parameters with the maps of some (block, level) replaced."""
    tree = jax.tree.map(lambda x: x, slow)
    for (block, level), maps in fast.items():
        for name in MAPS:
            held = tree["blocks"]["continuum"][f"level_{level}"][name]
            held["kernel"] = held["kernel"].at[block].set(maps[name])
    return tree


@functools.cache
def plain_functions(plain, points):
    """Losses, the same with their gradient, and what each map reads, in a plain model of other weights.

    And the gradient of the local objective. Each is compiled by itself: the whole loop, unrolled,
    would take minutes to compile. With `points` all but the text has a leading axis, and arrays of
    NumPy come out.
    """
    model = LanguageModel(plain)

    def losses(fast, slow, tokens, targets, reset, state):
        variables = {"params": inserted(slow, fast)}
        logits, state = model.apply(variables, tokens[None], state, reset[None])
        logits = logits[0]
        return jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(targets)), targets], state

    def inputs(fast, slow, tokens, reset, state):
        variables = {"params": inserted(slow, fast)}
        _, seen = apply_with_dense_inputs(model, variables, tokens[None], state, reset[None])
        seen = seen["blocks"]["continuum"]
        return {
            (block, level): {name: seen[f"level_{level}"][name]["kernel"][block] for name in MAPS}
            for block, level in fast
        }

    def summed(*given):
        each, state = losses(*given)
        return each.sum(), (each, state)

    def local(maps, x, keys, values):
        k, v = x @ keys, x @ values
        predicted = (jax.nn.silu(k @ maps["gate"]) * (k @ maps["up"])) @ maps["down"]
        return jnp.sum((predicted - v) ** 2) / (2 * x.shape[-1])

    def compiled(function, *axes):
        if not points:
            return jax.jit(function)
        function = jax.jit(jax.vmap(function, axes))
        return lambda *given: jax.tree.map(np.asarray, function(*given))

    return (
        compiled(losses, 0, 0, None, None, None, 0),
        compiled(jax.grad(summed, has_aux=True), 0, 0, None, None, None, 0),
        compiled(inputs, 0, 0, None, None, 0),
        compiled(jax.grad(local), 0, 0, 0, 0),
    )


def initial_of(params, places):
    return {
        (block, level): {
            name: params["blocks"]["continuum"][f"level_{level}"][name]["kernel"][..., block, :, :]
            for name in MAPS
        }
        for block, level in places
    }


def reference(name, params, text, reset, points):
    """Losses and final weights of one sequence: slices, `jax.grad` on each, the change by hand.

    The plain model knows nothing of learning; it is given other parameters after each chunk. With
    `points` the parameters, and all that comes of them, have a leading axis and are NumPy's.
    """
    plain, learning = CASES[name]
    losses_of, learn_from, inputs_of, local_gradient = plain_functions(plain, points)
    library = np if points else jnp
    blocks, levels, chunks = learning["blocks"], plain.cms_levels, learning["chunks"]
    first = plain.num_layers - blocks
    slow = {key: value for key, value in params.items() if key in KEPT}
    here = [(block, level) for block in range(first, plain.num_layers) for level in range(levels)]
    initial = initial_of(slow, here)
    zero = jax.tree.map(lambda w: 0 * w, initial)
    chunk_of, step_of = {}, {}
    for block, level in initial:
        index = level if levels > 1 else (block - first) * len(chunks) // blocks
        chunk_of[block, level] = chunks[index]
        step_of[block, level] = np.broadcast_to(learning["step_size"], len(chunks))[index]
        if "log_step" in params:
            factor = library.exp(params["log_step"][..., block - first, level])
            step_of[block, level] *= factor[..., None, None]

    fast, summed, momentum, state, losses = initial, zero, zero, None, []
    smallest, length, stop = chunks[0], len(text) - 1, jax.lax.stop_gradient
    for start in range(0, length, smallest):
        end = min(start + smallest, length)
        # Documents within the chunk, each from its reset on.
        inside = [i for i in range(start + 1, end) if reset[i]]
        for a, b in itertools.pairwise([start, *inside, end]):
            if reset[a]:
                fast, summed, momentum = initial, zero, zero
            document = (slow, text[a:b], text[a + 1 : b + 1], reset[a:b], state)
            if learning.get("objective") == "local":
                part, state = losses_of(fast, *document)
            else:  # once, also where nothing is learnt from it: it is one program less
                gradient, (part, state) = learn_from(fast, *document)
            losses.append(part)
        if end == length:  # nothing more will be read
            break
        if not reset[end]:
            slow, tokens, _, flags, before = document
            if learning.get("objective") == "local":
                read = inputs_of(fast, slow, tokens, flags, before)
                gradient = {
                    (block, level): local_gradient(
                        fast[block, level],
                        read[block, level]["gate"],
                        params["local_keys"][..., block - first, level, :, :],
                        params["local_values"][..., block - first, level, :, :],
                    )
                    for block, level in initial
                }
            if learning.get("optimizer") == "dgd":
                unit = jax.tree.map(
                    lambda x: (
                        x / library.maximum(library.linalg.norm(x, axis=-1, keepdims=True), 1)
                    ),
                    inputs_of(fast, slow, tokens, flags, before),
                )
                gradient = jax.tree.map(
                    lambda g, x, w: g + x.swapaxes(-1, -2) @ x @ w, gradient, unit, fast
                )
            # Over the chunk's size, also where a reset leaves fewer tokens to be learnt from.
            summed = jax.tree.map(lambda s, g: s + g / smallest, summed, gradient)
        fast, summed, momentum = dict(fast), dict(summed), dict(momentum)
        for here, chunk in chunk_of.items():
            if end % chunk == 0:
                mean = jax.tree.map(lambda s, n=chunk // smallest: s / n, summed[here])
                if learning.get("gradient_steps") == 0:
                    mean = stop(mean)
                if learning.get("optimizer") == "momentum":
                    mean = jax.tree.map(lambda m, g: 0.9 * m + g, momentum[here], mean)
                    momentum[here] = mean
                decay, step = learning.get("decay", 0.0), step_of[here]
                if "largest_change" in learning:
                    lengths = [
                        library.sqrt(sum((maps[n] ** 2).sum((-1, -2), keepdims=True) for n in MAPS))
                        for maps in (initial[here], mean)
                    ]
                    most = learning["largest_change"] * lengths[0]
                    large = step * lengths[1] > most
                    step = library.where(large, most / library.where(large, lengths[1], 1), step)
                fast[here] = {
                    n: w - decay * (w - initial[here][n]) - step * mean[n]
                    for n, w in fast[here].items()
                }
                summed[here] = zero[here]
            block, level = here
            nested = plain.cms_connection == "nested" and level + 1 < levels
            if nested and end % chunks[level + 1] == 0:
                fast[here], momentum[here] = initial[here], zero[here]
            every = learning.get("gradient_steps")
            if every and end // smallest % every == 0:
                fast[here] = jax.tree.map(
                    lambda w, w_0: stop(w) + w_0 - stop(w_0), fast[here], initial[here]
                )
                summed[here], momentum[here] = stop(summed[here]), stop(momentum[here])
    return library.concatenate(losses, axis=-1), fast


def fast_weights(state, first, row):
    """{(block, level): maps} of a sequence, as the reference has them."""
    levels = state.adapting.blocks.continuum.levels
    return {
        (first + block, level): {
            name: getattr(levels[level].weights, name)[block, row] for name in MAPS
        }
        for block in range(levels[0].weights.gate.shape[0])
        for level in range(len(levels))
    }


def losses_of_model(model, params, reset=RESET):
    return model.apply({"params": params}, TEXT[:, :-1], TEXT[:, 1:], reset, method="token_losses")


def assert_trees_close(ours, theirs, tolerance):
    jax.tree.map_with_path(
        lambda path, ours, theirs: np.testing.assert_allclose(
            ours, theirs, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        ),
        ours,
        theirs,
    )


def directions_of(params):
    """As many random directions as leaves, each along one of them: every leaf with a leading axis."""
    random, leaves = np.random.default_rng(3), jax.tree.leaves(params)
    directions = [np.zeros((len(leaves), *leaf.shape)) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        directions[i][i] = random.normal(size=leaf.shape)
    return jax.tree.unflatten(jax.tree.structure(params), directions)


@pytest.mark.parametrize("name", CASES)
def test_equals_a_loop_over_slices_with_gradients_by_hand(exact, name):
    model, params = made(name)
    cut = CASES[name][1].get("gradient_steps") is not None  # differences know nothing of it
    weight = np.random.default_rng(2).normal(size=(BATCH, TOKENS))

    def ours(params):
        inputs = TEXT[:, :-1], None, RESET, TEXT[:, 1:]
        losses, state = model.apply({"params": params}, *inputs, method="_advance")
        return jnp.sum(losses * weight), (losses, state)

    def theirs(params):
        rows = [reference(name, params, TEXT[i], RESET[i], points=not cut) for i in range(BATCH)]
        losses = (jnp if cut else np).stack([losses for losses, _ in rows], axis=-2)
        return (losses * weight).sum((-1, -2)), (losses, [fast for _, fast in rows])

    (_, (losses, state)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    if cut:
        (_, (expected, fast)), by_hand = jax.value_and_grad(theirs, has_aux=True)(params)
    else:
        # The loop goes once, for the parameters and all that differences are made of.
        size = 2e-5
        directions = directions_of(params)
        steps = size * np.array([1, -1, 2, -2])
        count = len(jax.tree.leaves(params))
        # In front the parameters, so often that all cases of a model are one program.
        points = jax.tree.map(
            lambda w, d: np.concatenate(
                [np.repeat(w[None], 128 - 4 * count, 0), *(w + step * d for step in steps)]
            ),
            jax.tree.map(np.asarray, params),
            directions,
        )
        values, (expected, fast) = theirs(points)
        expected, fast = jax.tree.map(lambda x: x[0], (expected, fast))
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-9)
    first = model.config.num_layers - model.config.adapting_blocks
    assert_trees_close([fast_weights(state, first, row) for row in range(BATCH)], fast, 1e-9)
    fast = fast[0]
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), fast, initial_of(params, fast))
    assert max(jax.tree.leaves(moved)) > 1e-2

    if cut:
        assert_trees_close(gradient, by_hand, 1e-8)
        return
    near, near_back, far, far_back = values[-4 * count :].reshape(4, -1)
    wanted = (8 * (near - near_back) - (far - far_back)) / (12 * size)  # of fourth order
    for i, (path, of_leaf) in enumerate(jax.tree.leaves_with_path(gradient)):
        found = jnp.vdot(of_leaf, jax.tree.leaves(directions)[i][i])
        np.testing.assert_allclose(
            found, wanted[i], rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path)
        )


def test_without_a_reset_argument_it_is_the_same(exact):
    model, params = made("sequential")
    losses = jax.jit(functools.partial(losses_of_model, model, reset=None))(params)
    none = jax.jit(functools.partial(losses_of_model, model, reset=np.zeros_like(RESET)))(params)
    np.testing.assert_allclose(losses, none, rtol=1e-12)


STREAMED = ("sequential", "levels_over_depth", "titans", "local_nested")


@pytest.mark.parametrize("name", STREAMED)
def test_pieces_of_any_size_give_what_one_call_gives(exact, name):
    model, params = made(name)
    apply = jax.jit(model.apply)
    variables, tokens = {"params": params}, TEXT[:, :-1]
    whole, last = apply(variables, tokens, None, RESET)
    for sizes in ([1] * TOKENS, [3, 0, 7, 1]):
        state, pieces, start = init_state(model, params, BATCH) if sizes[0] == 1 else None, [], 0
        for size in sizes:
            part = slice(start, start + size)
            # A piece without a reset may do without the argument.
            flags = RESET[:, part] if RESET[:, part].any() else None
            logits, state = apply(variables, tokens[:, part], state, flags)
            pieces.append(logits)
            start += size
        np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=1e-9, atol=1e-9)
        assert_trees_close(state, last, 1e-9)


@pytest.mark.parametrize("name", ["sequential", "local"])
def test_losses_of_pieces_are_those_of_one_call_and_leave_the_same_state(exact, name):
    model, params = made(name)
    score = jax.jit(functools.partial(model.apply, method="score"))
    variables, tokens = {"params": params}, TEXT[:, :-1]
    _, last = jax.jit(model.apply)(variables, tokens, None, RESET)
    state, pieces, start = None, [], 0
    for size in (3, 1, 7):
        part = slice(start, start + size)
        inputs = tokens[:, part], TEXT[:, 1:][:, part], state, RESET[:, part]
        losses, state = score(variables, *inputs)
        pieces.append(losses)
        start += size
    whole = jax.jit(functools.partial(losses_of_model, model))(params)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=1e-9, atol=1e-9)
    assert_trees_close(state, last, 1e-9)


@pytest.mark.parametrize("name", ["sequential", "local"])
def test_no_token_tells_of_a_later_one_nor_a_sequence_of_another(exact, name):
    model, params = made(name)
    logits = jax.jit(lambda tokens: model.apply({"params": params}, tokens)[0])
    losses = jax.jit(
        lambda tokens: model.apply(
            {"params": params}, tokens[:, :-1], tokens[:, 1:], method="token_losses"
        )
    )
    tokens = TEXT[:, :-1]
    before, before_losses = logits(tokens), losses(TEXT)
    for place in range(TOKENS):
        other = tokens.copy()
        other[0, place] = (other[0, place] + 1) % VOCAB
        after = logits(other)
        np.testing.assert_array_equal(after[0, :place], before[0, :place])
        assert np.abs(after[0, place:] - before[0, place:]).max() > 1e-10
        np.testing.assert_array_equal(after[1], before[1])
        other = TEXT.copy()
        other[0, place + 1] = (other[0, place + 1] + 1) % VOCAB
        after = losses(other)
        np.testing.assert_array_equal(after[0, :place], before_losses[0, :place])
        np.testing.assert_array_equal(after[1], before_losses[1])


@pytest.mark.parametrize("objective", ["next_token", "local"])
def test_bfloat16_parameters_learn_as_float32_ones_of_their_values(objective):
    """Forty changes of 1e-3 each: in bfloat16, most of them would be rounded away."""
    learning = settings(
        objective=objective, chunks=(1, 2), step_size=1e-3, optimizer="momentum", blocks=1
    )
    learnt, slopes = {}, {}
    text = np.tile(TEXT, 4)
    for dtype in ("bfloat16", "float32"):
        config = dataclasses.replace(
            PLAIN, num_layers=1, dtype="float32", param_dtype=dtype, in_context=learning
        )
        model = LanguageModel(config)
        if not learnt:
            params = nn.unbox(jax.jit(model.init)(jax.random.key(0), text[:, :2])["params"])

        def total(params, model=model):
            inputs = {"params": params}, text[:, :-1], None, None, text[:, 1:]
            losses, state = model.apply(*inputs, method="_advance")
            return losses.sum(), (losses, state)

        slopes[dtype], (losses, state) = jax.jit(jax.grad(total, has_aux=True))(params)
        first = config.num_layers - config.adapting_blocks
        learnt[dtype] = losses, fast_weights(state, first, 0)
        assert {leaf.dtype for leaf in jax.tree.leaves(learnt[dtype])} == {jnp.dtype("float32")}
        # What is held in bfloat16 the float32 model holds exactly.
        params = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    initial = initial_of(params, learnt["float32"][1])
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), learnt["float32"][1], initial)
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert_trees_close(learnt["bfloat16"], learnt["float32"], 1e-6)
    if objective == "local":
        return
    # The outer gradient is rounded where it is whole, and its sums over chunks are not.
    for (path, low), full in zip(
        jax.tree.leaves_with_path(slopes["bfloat16"]),
        jax.tree.leaves(slopes["float32"]),
        strict=True,
    ):
        off = np.linalg.norm(np.float32(low) - full) / np.linalg.norm(full)
        assert off < 3e-3, (jax.tree_util.keystr(path), off)


def test_a_state_that_has_read_nothing_can_be_donated():
    learning = settings(optimizer="momentum", blocks=1)
    config = dataclasses.replace(
        PLAIN, num_layers=1, dtype="float32", param_dtype="float32", in_context=learning
    )
    model = LanguageModel(config)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT[:, :2])["params"])
    places = [
        leaf.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((init_state(model, params, BATCH), params))
        if leaf.size
    ]
    assert len(set(places)) == len(places)


@functools.cache
def logits_and_losses(config):
    """The model's outputs in training and in reading, as functions of parameters and resets."""
    model = LanguageModel(config)
    logits = lambda params, reset: model.apply({"params": params}, TEXT[:, :-1], None, reset)[0]
    losses = lambda params, reset: losses_of_model(model, params, reset)
    return jax.jit(logits), jax.jit(losses)


@pytest.mark.parametrize("objective", ["next_token", "local"])
def test_what_learns_nothing_is_the_plain_model_to_the_bit(objective):
    plain = dataclasses.replace(PLAIN, dtype="float32", param_dtype="float32")
    long = settings(objective=objective, chunks=(TOKENS, 2 * TOKENS))
    never = settings(objective=objective, step_size=0.0)
    for learning in (long, never):
        config = dataclasses.replace(plain, in_context=learning)
        init = jax.jit(LanguageModel(config).init)
        params = nn.unbox(init(jax.random.key(0), TEXT[:, :2])["params"])
        bare = {name: params[name] for name in KEPT}
        for reset in (None, np.zeros_like(RESET), RESET):
            for ours, theirs in zip(*map(logits_and_losses, (config, plain)), strict=True):
                np.testing.assert_array_equal(ours(params, reset), theirs(bare, reset))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks": (4, 6)}, "4 does not divide 6"),
        ({"chunks": (0, 6)}, "each a whole number at least 1"),
        ({"chunks": (2, 4, 8), "step_size": 0.1}, "one number for each of the 2 levels"),
        ({"blocks": 4}, "blocks=4, but the model has 3 blocks"),
        ({"step_size": (0.1,)}, "one for each of the chunks"),
        ({"objective": "next"}, "next_token, local"),
        ({"momentum": 1.0}, "momentum=1.0 must be a number at least 0 and below 1"),
        ({"gradient_steps": -1}, "gradient_steps=-1 must be a whole number at least 0 or None"),
        ({"chunk": (2, 4)}, "in_context.chunk is no setting; nearest: chunks"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, in_context=settings(**changes))
