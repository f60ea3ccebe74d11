"""A linear classifier on frozen features."""

import typing

import numpy as np

from nest_dist.base import settings
from nest_dist.base.checks import Within
from nest_dist.train import evaluators
from nest_dist.train.evaluators import features
from nest_dist.train.objectives import classification


@settings.register
class LinearProbe(features.OfFeatures):
    """Accuracy of softmax regression on the features of all reference examples: `linear_probe`.

    L-BFGS minimises the mean cross-entropy plus half the penalty times the squared weights.
    Features have mean 0 and deviation 1 over the reference.

    Attributes:
        penalty: of the squared weights; the intercept has none.
        most_iterations: of L-BFGS; a line tells if they do not suffice.
    """

    penalty: typing.Annotated[float, Within(0, open_low=True)] = 1e-3
    most_iterations: typing.Annotated[int, Within(1)] = 500
    level: typing.Annotated[int, Within(0)] | None = None

    @property
    def _name(self) -> str:
        return evaluators.titled("linear_probe", self.level)

    def metrics(self) -> tuple[str, ...]:
        return (self._name,)

    def conclude(self, gathered: evaluators.Gathered) -> evaluators.Finding:
        asked, learnt = self.splits(gathered)
        more: list[str] = []
        predicted = np.full(len(asked.labels), classification.NO_CLASS)
        known, labels = learnt.known()
        if len(labels):
            scale = features.scale(known)
            present, targets = np.unique(labels, return_inverse=True)
            weights, intercept, converged = self.fit(scale(known), targets)
            predicted = present[(scale(asked.features) @ weights + intercept).argmax(axis=1)]
            if not converged:
                more.append(
                    f"{self._name} was still improving after {self.most_iterations} iterations; "
                    "raise LinearProbe.most_iterations or .penalty"
                )
        return self.finding(self._name, predicted, asked, learnt, gathered.classes, *more)

    def fit(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Weights [C, classes], intercepts [classes], and whether they are the minimum.

        Args:
            inputs: float64 [N, C].
            targets: classes [N], each from 0 on at least once.
        """
        # A run that measures nothing by it does not load it.
        from scipy import optimize

        N, C = inputs.shape
        classes = int(targets.max()) + 1
        shape, rows = (C + 1, classes), np.arange(N)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights, intercept = np.split(flat.reshape(shape), [C])
            scores = inputs @ weights + intercept
            scores -= scores.max(axis=1, keepdims=True)
            shares = np.exp(scores)
            total = shares.sum(axis=1, keepdims=True)
            value = np.mean(np.log(total[:, 0]) - scores[rows, targets])
            shares /= total
            shares[rows, targets] -= 1
            gradient = np.vstack(
                [inputs.T @ shares / N + self.penalty * weights, shares.mean(axis=0)[None]]
            )
            return float(value + self.penalty / 2 * (weights**2).sum()), gradient.ravel()

        optimum = optimize.minimize(
            loss,
            np.zeros(shape).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.most_iterations, "ftol": 1e-12, "gtol": 1e-6},
        )
        weights, intercept = np.split(optimum.x.reshape(shape), [C])
        return weights, intercept[0], bool(optimum.success)
