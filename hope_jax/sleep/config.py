"""Settings of a night."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from hope_jax.inference.sampling import check_sampling
from hope_jax.named import find
from hope_jax.settings import check_fields, setting
from hope_jax.sleep.divergence import forward_kl, jensen_shannon, reverse_kl
from hope_jax.sleep.imitation import Judge

DIVERGENCES: dict[str, Callable[..., Any]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}


@dataclasses.dataclass(frozen=True)
class SleepConfig:
    """How a night goes: what is moved, by how much of what, and where room for it is.

    Raises:
      SettingError: on construction, for values that are out of range or do not fit each other.

    Example:
      >>> SleepConfig(steps=20, lam=0.5).continuations
      2
    """

    level: int = setting(
        "whose knowledge moves on, an index into in_context.chunks; 0 for the fastest", 0, least=0
    )
    # The paper's update is "pending"; "slow" also drops what earlier chunks have left.
    new_weights: Literal["slow", "pending"] = setting(
        "what this level wakes with: its slow weights, or its own ones after the change that it has "
        "gathered gradients for",
        "slow",
    )
    keep_context: bool = setting(
        "whether what attention and memories hold is kept, for a night within a text; else it is "
        "forgotten, and learned as far as the teacher's samples speak of it",
        False,
    )
    experts: int = setting("room for experts beside each level, for each reader", 5, least=1)
    expert_width: int = setting("rank of an expert", 64, least=1)
    steps: int = setting("of the optimiser", 100, least=0)
    samples: int = setting("sequences that the teacher makes for each step", 16, least=1)
    kept_samples: int = setting(
        "sequences that the teacher makes once, before the first step, of which each step takes its "
        "samples in turn; 0 for new ones at each step",
        0,
        least=0,
    )
    tokens: int = setting("of each sequence", 64, least=2)
    temperature: float = setting("of the teacher's samples; 0 is greedy", 1.0, least=0)
    top_p: float = setting(
        "the teacher draws from the likeliest tokens that hold this probability",
        1.0,
        above=0,
        most=1,
    )
    # One's own is a function of teacher's and student's logits, (B, T, V) -> (B, T).
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] | Callable[..., Any] = (
        setting("of the student from the teacher", "forward_kl")
    )
    lam: float = setting(
        "share of the student's own continuations in the distillation", 0.5, least=0, most=1
    )
    a: float = setting(
        "share of the distillation in the objective; the rest is reward", 0.9, above=0, most=1
    )
    gam: float = setting("share of the judge in the reward", 0.0, least=0, most=1)
    z0: float | None = setting(
        "largest edit distance that is rewarded; None for any", None, least=0
    )
    # (imitation, original, their lengths) -> (B,), compiled with the step.
    judge: Callable[..., Any] | None = setting("tells which have the same meaning", None)
    continuations: int = setting("of each prefix, by the student", 2, least=2)
    rehearsal: float = setting(
        "how much the divergence on texts that are rehearsed counts beside the rest of the objective, "
        "where there are any",
        1.0,
        above=0,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_sampling(self.temperature, self.top_p)
        if self.gam and self.judge is None:
            raise ValueError(f"gam={self.gam} is the share of a judge; give judge, or gam=0")

    @property
    def divergence_function(self) -> Callable[[Any, Any], Any]:
        """Of teacher's and student's logits."""
        name = str(self.divergence)
        return DIVERGENCES[name] if name in DIVERGENCES else find(name)

    @property
    def judge_function(self) -> Judge | None:
        """The judge, if there is one."""
        return None if self.judge is None else find(str(self.judge))

    @property
    def student_speaks(self) -> bool:
        """Whether anything is learned from what the student says."""
        return self.lam > 0 or self.a < 1

    @property
    def largest_distance(self) -> float:
        """z0 as a number."""
        return jnp.inf if self.z0 is None else self.z0


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """How a night goes on with dreams, which are drawn at the temperature of its samples.

    Raises:
      SettingError: on construction, for values that are out of range.
      ValueError: for more to be tried than is dreamt.

    Example:
      >>> DreamConfig(dreams=20).best
      4
    """

    dreams: int = setting("after seeding; 0 for a night without dreams", 0, least=0)
    dream_tokens: int = setting("of each dream", 64, least=2)
    without_openings: bool = setting(
        "whether dreams are learned without their openings, which only who dreams has in front of it",
        False,
    )
    best: int = setting("dreams of the largest gradient that are tried", 4, least=0)
    others: int = setting("of the other dreams that are tried, drawn at random", 1, least=0)
    random_expert: bool = setting(
        "whether each router opens one of its experts fully, drawn at random for each dream", True
    )
    trial_steps: int = setting("of a copy of the new expert, on one dream", 10, least=1)
    trial_rate: float = setting("learning rate of a trial, by Adam", 1e-3, above=0)
    dream_steps: int = setting("of the new expert, on the dreams that helped", 2, least=1)
    dream_rate: float = setting("learning rate of these, by Adam", 3e-4, above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dreams and not 1 <= self.best + self.others <= self.dreams:
            raise ValueError(
                f"best={self.best} and others={self.others} of dreams={self.dreams} cannot be tried; "
                f"set both so that together they are at least 1 and at most dreams"
            )
