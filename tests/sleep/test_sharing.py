"""Experts of one reader as parameters of everyone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.layers.experts import Experts
from hope_jax.models import LanguageModel, init_state
from hope_jax.sleep.expansion import expand, experts_of, make_room, with_experts
from hope_jax.sleep.sharing import share
from tests.sleep.reader import READERS, TEXT, made


def test_everyone_says_what_the_reader_would_say_with_nothing_read():
    model, params, context = made()
    keys = jax.random.split(jax.random.key(3), READERS)
    state = expand(model, make_room(model, context.state, 3, 3), 1, keys)
    state = expand(model, expand(model, state, 0, keys), 0, keys)
    random = np.random.default_rng(0)
    held = experts_of(state)
    loud = (jnp.asarray(random.normal(size=w.shape), jnp.float32) for w in held[:3])
    # What is switched off is never heard, whatever it holds.
    state = with_experts(state, Experts(*loud, held.active))
    config, theirs = share(model, params, state, reader=1)
    assert config.in_context["experts"] == 2 and config.in_context["expert_width"] == 3
    assert theirs["expert_down"].shape == (1, 2, 2, 4, 3)
    found, _ = jax.jit(LanguageModel(config).apply)({"params": theirs}, TEXT)
    fresh = with_experts(init_state(model, params, READERS), experts_of(state))
    wanted, _ = jax.jit(model.apply)({"params": params}, TEXT, fresh)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-4)
    again = make_room(LanguageModel(config), context.state, 3, 3)
    again = expand(LanguageModel(config), again, 0, keys)
    config, more = share(LanguageModel(config), theirs, again)
    assert config.in_context["experts"] == 3 and more["expert_down"].shape == (1, 2, 3, 4, 3)


def test_what_cannot_be_shared_is_refused():
    model, params, context = made()
    for state in (context.state, make_room(model, context.state, 2, 3)):
        with pytest.raises(ValueError, match="there is no expert in this state to be shared"):
            share(model, params, state)
