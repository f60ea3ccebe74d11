"""Few-shot accuracy: ridge regression on the features of a few examples of each class."""

import typing

import numpy as np

from nest_dist.base import settings
from nest_dist.base.checks import Within
from nest_dist.train import evaluators
from nest_dist.train.evaluators import features
from nest_dist.train.objectives import classification


@settings.register
class FewShot(features.OfFeatures):
    """Accuracy of ridge regression on `shots` examples of each class: `few_shot_5`.

    It is the mean over `draws`; `few_shot_5_deviation` is their standard deviation. The shots of a
    draw begin with those of fewer shots. A class with fewer examples takes part with all it has, a
    class without any is never right. Features have mean 0 and deviation 1 over the shots; targets
    are 1 for the class and -1 for each other one.

    Attributes:
        shots: examples of each class, one number or several.
        draws: of the reference examples.
        penalty: of the squared weights, over the number of shots of all classes.
        seed: of the draws.
    Source: arXiv 2010.11929, section 4.1, "few-shot accuracies".
    """

    shots: typing.Annotated[tuple[int, ...], Within(1)] = (1, 5, 10)
    draws: typing.Annotated[int, Within(1)] = 3
    penalty: typing.Annotated[float, Within(0, open_low=True)] = 0.1
    seed: typing.Annotated[int, Within(0, 2**32 - 1)] = 0
    level: typing.Annotated[int, Within(0)] | None = None

    def _name(self, shots: int) -> str:
        return evaluators.titled(f"few_shot_{shots}", self.level)

    def metrics(self) -> tuple[str, ...]:
        return tuple(map(self._name, self.shots))

    def conclude(self, gathered: evaluators.Gathered) -> evaluators.Finding:
        asked, learnt = self.splits(gathered)
        known, labels = learnt.known()
        metrics = {}
        for shots in self.shots:
            shares = []
            for draw in range(self.draws):
                taken = self.drawn(labels, shots, draw)
                predicted = ridge(known[taken], labels[taken], self.penalty, asked.features)
                shares.append(evaluators.accuracy(features.right(predicted, asked)))
            metrics[self._name(shots)] = float(np.mean(shares))
            metrics[f"{self._name(shots)}_deviation"] = float(np.std(shares))
        notes = features.notes("few_shot", asked, learnt, gathered.classes)
        return evaluators.Finding(metrics, (*notes, *self._few(labels, gathered.classes)))

    def drawn(self, labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
        """The positions of a draw, ascending: the first `shots` of each class in a random order."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, draw]))
        order = generator.permutation(len(labels))
        by_label = order[np.argsort(labels[order], kind="stable")]
        _, first, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
        rank = np.arange(len(labels)) - np.repeat(first, counts)
        return np.sort(by_label[rank < shots])

    def _few(self, labels: np.ndarray, classes: evaluators.Classes) -> list[str]:
        counts = np.bincount(labels, minlength=len(classes.names))
        most = max(self.shots)
        named = zip(classes.names, counts, strict=True)
        few = [name for name, count in named if 0 < count < most]
        if not few:
            return []
        note = (
            f"few_shot: {len(few)} classes, {few[0]!r} the first, have fewer than {most} reference "
            "examples; they take part with those they have"
        )
        return [note]


def ridge(known: np.ndarray, labels: np.ndarray, penalty: float, asked: np.ndarray) -> np.ndarray:
    """The classes [M] that ridge regression predicts, with an intercept that is not penalised.

    Args:
        known: features float64 [N, C].
        labels: their classes [N].
        penalty: over N.
        asked: features float64 [M, C].
    Returns:
        Labels among `labels`; `NO_CLASS` if there are none.
    """
    present, targets = np.unique(labels, return_inverse=True)
    if not len(present):
        return np.full(len(asked), classification.NO_CLASS)
    scale = features.scale(known)
    inputs = scale(known)  # of mean 0, so the intercept is the mean of the targets
    wanted = 2.0 * np.eye(len(present))[targets] - 1.0
    intercept = wanted.mean(axis=0)
    N, C = inputs.shape
    strength = penalty * N
    # Both forms are the same weights; the smaller system is solved.
    if N < C:
        dual = np.linalg.solve(inputs @ inputs.T + strength * np.eye(N), wanted - intercept)
        weights = inputs.T @ dual
    else:
        gram = inputs.T @ inputs + strength * np.eye(C)
        weights = np.linalg.solve(gram, inputs.T @ (wanted - intercept))
    scores = scale(asked) @ weights + intercept
    return typing.cast(np.ndarray, present[scores.argmax(axis=1)])
