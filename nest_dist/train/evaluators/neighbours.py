"""The vote of the nearest neighbours among features."""

import typing

import numpy as np

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.train import evaluators
from nest_dist.train.evaluators import features
from nest_dist.train.objectives import classification

CHUNK = 1 << 23  # numbers of one table of similarities or votes, 64 MB


@settings.register
class KNearest(features.OfFeatures):
    """The share of examples to which their k nearest reference examples give the label: `knn_20`.

    Of equally near examples the earlier one is nearer, and of equal votes the lower label wins.

    Attributes:
        k: number of neighbours.
        distance: "cosine", or "euclidean".
        temperature: a neighbour of cosine similarity s has exp(s / temperature) votes; None gives
            each one vote.
    Source: arXiv 1805.01978, section 3.4.
    """

    k: typing.Annotated[int, Within(1)] = 20
    distance: typing.Literal["cosine", "euclidean"] = "cosine"
    temperature: typing.Annotated[float, Within(0, open_low=True)] | None = 0.07
    level: typing.Annotated[int, Within(0)] | None = None

    def __post_init__(self) -> None:
        if self.distance == "euclidean" and self.temperature is not None:
            raise failures.BadInput(
                f"KNearest.temperature is {self.temperature}, which has a meaning for cosine "
                "similarity alone; set it to None, or KNearest.distance to 'cosine'."
            )

    @property
    def _name(self) -> str:
        return evaluators.titled(f"knn_{self.k}", self.level)

    def metrics(self) -> tuple[str, ...]:
        return (self._name,)

    def require_fit(self, classes: evaluators.Classes, examples: int, reference: int) -> None:
        if reference < self.k:
            raise failures.BadInput(
                f"KNearest.k is {self.k}, and there are {reference} reference examples; lower it, "
                "or give more in Evaluation.reference."
            )

    def conclude(self, gathered: evaluators.Gathered) -> evaluators.Finding:
        asked, known = self.splits(gathered)
        predicted = self.predict(*known.known(), asked.features, len(gathered.classes.names))
        return self.finding(self._name, predicted, asked, known, gathered.classes)

    def predict(
        self, known: np.ndarray, labels: np.ndarray, asked: np.ndarray, num_classes: int
    ) -> np.ndarray:
        """The class [N] of each example, by its neighbours; `NO_CLASS` if there are none.

        Args:
            known: features of the neighbours, float64 [M, C].
            labels: of the neighbours, [M].
            asked: features of the examples, float64 [N, C].
        """
        N, M = len(asked), len(known)
        predicted = np.full(N, classification.NO_CLASS)
        if not M:
            return predicted
        if self.distance == "cosine":
            known, asked = _unit(known), _unit(asked)
        k, rows = min(self.k, M), max(1, CHUNK // max(M, num_classes))
        for start in range(0, N, rows):
            near = self._nearness(asked[start : start + rows], known)
            chosen = _largest(near, k)
            votes = np.zeros((len(near), num_classes))
            weights = np.ones(chosen.shape)
            if self.temperature is not None:
                # The largest becomes 1: no power overflows, and shares stay as they are.
                similar = np.take_along_axis(near, chosen, axis=1)
                weights = np.exp((similar - similar.max(axis=1, keepdims=True)) / self.temperature)
            np.add.at(votes, (np.arange(len(near))[:, None], labels[chosen]), weights)
            predicted[start : start + rows] = votes.argmax(axis=1)
        return predicted

    def _nearness(self, asked: np.ndarray, known: np.ndarray) -> np.ndarray:
        products = asked @ known.T
        if self.distance == "cosine":
            return products
        # Minus the squared distance, without its term of the example asked.
        return 2 * products - (known**2).sum(axis=1)


def _unit(values: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths == 0, 1.0, lengths)


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The columns [N, k] of the k largest values of each row, ascending; earlier ones of equals."""
    least = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]
    above, equal = values > least, values == least
    lacking = k - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= lacking))
    return np.nonzero(chosen)[1].reshape(len(values), k)
