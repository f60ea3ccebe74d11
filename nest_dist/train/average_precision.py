"""Mean average precision of an evaluation split, exact over any number of processes.

A ranking needs the scores of all examples at once. So each process keeps those of the whole split,
which the evaluation step gives to all, and computes the same number from them.
"""

import math

import jax
import numpy as np

from nest_dist.data import targets
from nest_dist.train import objectives

NAME = "mean_average_precision"
# What an evaluation step gives for it; see `Objective.evaluate`.
KEPT = ("scores", "labels")


class Scores:
    """Collects the scores of a split, batch after batch."""

    def __init__(self) -> None:
        self._kept: dict[str, list[np.ndarray]] = {name: [] for name in KEPT}

    def add(self, measured: objectives.Metrics) -> None:
        """Keeps what an evaluation step gives for a ranking, if it does."""
        for name in KEPT:
            if name in measured:
                self._kept[name].append(np.asarray(jax.device_get(measured[name])))

    def metrics(self) -> dict[str, float]:
        """The mean average precision under its name in TensorBoard; empty without scores."""
        if not self._kept["scores"]:
            return {}
        scores, labels = (np.concatenate(self._kept[name]) for name in KEPT)
        return {f"eval/{NAME}": mean_average_precision(scores, labels)}


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that an example has; NaN if there is none.

    Args:
        scores: float32 [N, classes].
        labels: uint8 [N, classes], values of `targets`; what is unknown is left out.
    """
    precisions = []
    for label in np.flatnonzero((labels == targets.PRESENT).any(axis=0)):
        known = labels[:, label] != targets.UNKNOWN
        present = labels[known, label] == targets.PRESENT
        precisions.append(average_precision(scores[known, label], present))
    return math.fsum(precisions) / len(precisions) if precisions else math.nan


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """The area under the precision by recall of one class, as a sum of rectangles.

    It is the mean, over the examples of the class, of the share of the class among the examples
    whose score is not lower. So equal scores count as one. A NaN of an example of the class counts
    as not found; any NaN counts as above all others.

    Args:
        scores: [N].
        present: whether each example has the class, bool [N], at least one.
    Source: scikit-learn, `average_precision_score`.
    """
    is_nan = np.isnan(scores)
    everything = np.sort(np.where(is_nan, np.inf, scores))
    of_class = np.sort(scores[present & ~is_nan])
    not_lower = len(everything) - np.searchsorted(everything, of_class)
    right = len(of_class) - np.searchsorted(of_class, of_class)
    return math.fsum(right / not_lower) / int(present.sum())
