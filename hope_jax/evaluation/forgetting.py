"""What learning in stages leaves: average, forgetting and forward transfer of a matrix of scores.

Scores are a matrix R, of which `R[i, j]` is the score on the test of stage j + 1 after i stages: row 0 is
that of a model which has seen none. What was not tested is NaN.
"""

import numpy as np
from jaxtyping import Float


def averages(scores: Float[np.ndarray, "N+1 N"]) -> Float[np.ndarray, " N"]:
    """After each stage, the mean score on those so far, `A_i = mean_{j <= i} R_ij`.

    Args:
      scores: R.

    Example:
      >>> averages(np.array([[0.0, 0.0], [1.0, 0.2], [0.5, 0.8]])).tolist()
      [1.0, 0.65]
    """
    return np.array([row[: place + 1].mean() for place, row in enumerate(_checked(scores)[1:])])


def forgetting(scores: Float[np.ndarray, "N+1 N"]) -> float:
    """How far the score on a stage has come down at the end from its best since it was seen.

    `mean_{j < N} (max_{j <= i < N} R_ij - R_Nj)`, Chaudhry et al. (2018); below 0 where later stages
    helped, NaN for a single stage.

    Args:
      scores: R.

    Example:
      >>> forgetting(np.array([[0.0, 0.0], [1.0, 0.2], [0.5, 0.8]]))
      0.5
    """
    scores = _checked(scores)
    stages = scores.shape[1]
    if stages == 1:
        return float("nan")
    best = [scores[stage + 1 : stages, stage].max() for stage in range(stages - 1)]
    return float(np.mean(best - scores[-1, :-1]))


def forward_transfer(scores: Float[np.ndarray, "N+1 N"]) -> float:
    """How much better a stage is done before it is seen, for the stages before it.

    `mean_{j > 1} (R_{j-1, j} - R_{0 j})`, as Lopez-Paz and Ranzato (2017) with the model that has seen
    nothing in the place of one that was never trained; NaN for a single stage.

    Args:
      scores: R.

    Example:
      >>> forward_transfer(np.array([[0.0, 0.0], [1.0, 0.25], [0.5, 0.8]]))
      0.25
    """
    scores = _checked(scores)
    if scores.shape[1] == 1:
        return float("nan")
    later = np.arange(1, scores.shape[1])
    return float(np.mean(scores[later, later] - scores[0, later]))


def _checked(scores: np.ndarray) -> np.ndarray:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] + 1 or not scores.shape[1]:
        raise ValueError(
            f"scores of shape {scores.shape} must have a row for each stage and one before the first"
        )
    return scores
