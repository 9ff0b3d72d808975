"""One reader of a batch as several."""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.inference.sampling import Context, read
from hope_jax.sleep.expansion import make_room
from hope_jax.sleep.readers import as_batch, axes, readers_of
from tests.sleep.reader import READERS, made


def test_each_of_several_goes_on_as_the_reader_would_have_until_its_levels_change():
    model, params, context = made()
    room = Context(make_room(model, context.state, 1, 3), context.logits)
    token = jnp.asarray([[3], [5]])  # the last of an open chunk: weights change behind it

    def one(reader, token):
        return read(model, params, jnp.stack([token] * 3), as_batch(model, reader, 3)).logits

    several = jax.vmap(one, in_axes=(axes(model), 0))(readers_of(room), token)
    awake = read(model, params, token, context)
    for copy in range(3):
        np.testing.assert_allclose(several[:, copy], awake.logits, rtol=1e-5, atol=1e-6)
    fresh = read(model, params, token).logits
    assert several.shape[0] == READERS and np.abs(fresh - awake.logits).max() > 1e-2
