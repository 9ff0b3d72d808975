"""A trained model for EleutherAI's lm-evaluation-harness (`pip install 'hope_jax[eval]'`).

    from lm_eval import simple_evaluate
    results = simple_evaluate(HarnessModel(model, params, tokenizer), tasks=["arc_easy"])

`hope evaluate --workdir=DIR --harness=arc_easy` does that with the model of a run.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from hope_jax.data.tokenizers import Tokenizer, decode_to_end
from hope_jax.inference.sampling import generate, read_in_segments
from hope_jax.models.language_model import LanguageModel, ModelState

_MOST = 256  # tokens said where a task gives no number


class _EnoughError(Exception):
    """What ends an answer has been said."""


@functools.partial(jax.jit, static_argnames="model")
def _tell(
    model: LanguageModel,
    params: Any,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    state: ModelState | None,
) -> tuple[Float[Array, "B T"], Array, ModelState]:
    """Log-probabilities of the targets, whether each is the likeliest, and the state."""
    output: Any = model.apply({"params": params}, tokens, state)
    logits, state = output
    told = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return told - jax.nn.logsumexp(logits, axis=-1), told >= logits.max(axis=-1), state


class HarnessModel(LM):
    """Answers the harness's three kinds of requests.

    Texts are read in segments with the state carried on, so that none is too long, and several side by
    side. The tokenizer's own first tokens stand in front of each text; where it has none, the end of a
    text stands before one that nothing else is before, and if there is no such id either, the first
    token of such a text is not counted.

    Args:
      model: that is asked.
      params: of the model.
      tokenizer: of the model.
      texts_at_once: how many are read side by side.
      segment: tokens of a call.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Any,
        tokenizer: Tokenizer,
        texts_at_once: int = 8,
        segment: int = 128,
    ) -> None:
        super().__init__()
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.texts_at_once, self.segment = texts_at_once, segment

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of a continuation, and whether it is what greedy decoding would say."""
        pairs = [self.encode_pair(*request.args) for request in requests]
        return list(self._log_likelihoods(pairs))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of a whole text, each token told from all before it."""
        pairs = [self.encode_pair("", request.args[0]) for request in requests]
        return [told for told, _ in self._log_likelihoods(pairs)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model says after a text, until one of the strings that end it."""
        return [self._say(*request.args) for request in requests]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context, never none if there can be any, and of its continuation.

        They are those of both together, since a tokenizer may join what lies on either side of the
        seam; white space at the context's end belongs to the continuation.
        """
        stripped = context.rstrip()
        continuation, context = context[len(stripped) :] + continuation, stripped
        before = list(self.tokenizer.before)
        alone = self._encode(context)
        whole = self._encode(context + continuation)
        if not before and not alone:
            before = list(self.tokenizer.end_ids)[:1]
        return before + alone, whole[len(alone) :]

    def _encode(self, text: str) -> list[int]:
        return np.asarray(self.tokenizer.encode(text)).tolist() if text else []

    def _log_likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]]
    ) -> Iterator[tuple[float, bool]]:
        """Of each continuation after its context; long ones are read together."""
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        told: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.texts_at_once):
            part = order[start : start + self.texts_at_once]
            told |= zip(part, self._read_together([pairs[i] for i in part]), strict=True)
        for number in range(len(pairs)):
            yield told[number]

    def _read_together(
        self, pairs: Sequence[tuple[list[int], list[int]]]
    ) -> list[tuple[float, bool]]:
        longest = max(sum(map(len, pair)) for pair in pairs)
        length = -(-max(longest - 1, 1) // self.segment) * self.segment  # one shape of all calls
        ids = np.zeros((self.texts_at_once, length + 1), np.int32)
        counts = np.zeros((self.texts_at_once, length), bool)
        for row, (context, continuation) in enumerate(pairs):
            whole = context + continuation
            ids[row, : len(whole)] = whole
            counts[row, max(len(context) - 1, 0) : max(len(whole) - 1, 0)] = True
        state: ModelState | None = None
        total, likeliest = np.zeros(len(ids)), np.ones(len(ids), bool)
        for start in range(0, length, self.segment):
            end = start + self.segment
            parts = ids[:, start:end], ids[:, start + 1 : end + 1]
            told, first, state = _tell(self.model, self.params, *parts, state)
            counted = counts[:, start:end]
            total += np.where(counted, np.asarray(told), 0).sum(axis=1)
            likeliest &= (np.asarray(first) | ~counted).all(axis=1)
        return [(float(total[row]), bool(likeliest[row])) for row in range(len(pairs))]

    def _say(self, text: str, settings: dict[str, Any]) -> str:
        given = settings.get("until") or []
        until = [end for end in ([given] if isinstance(given, str) else given) if end]
        ids = list(self.tokenizer.before) + self._encode(text)
        if not ids:
            raise ValueError("there is nothing to continue: a request for text is empty")
        rows = np.array([ids], np.int32)
        context = read_in_segments(self.model, self.params, rows, self.segment)
        said: list[int] = []

        def look(token: np.ndarray) -> None:
            said.append(int(token[0]))
            if any(end in self.tokenizer.decode(said) for end in until):
                raise _EnoughError

        sample = settings.get("do_sample", False)
        with contextlib.suppress(_EnoughError):
            generate(
                self.model,
                self.params,
                context,
                jax.random.key(settings.get("seed", 0)),
                num_tokens=int(settings.get("max_gen_toks", _MOST)),
                temperature=float(settings.get("temperature", 1.0)) if sample else 0.0,
                top_p=float(settings.get("top_p", 1.0)),
                vocab_size=self.tokenizer.vocab_size,
                end_ids=self.tokenizer.end_ids,
                on_token=look,
            )
        spoken = decode_to_end(self.tokenizer, said)
        return min((spoken.split(end)[0] for end in until), key=len, default=spoken)
