"""Features of the backbone: the one way in which evaluations take them, whatever the objective."""

import typing
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.train import evaluators, state


def see(
    model: typing.Any, params: state.Params, images: jax.Array, levels: Collection[evaluators.Level]
) -> evaluators.Seen:
    """Outputs and features of normalized images [B, H, W, C].

    The features of a level are the mean of its tokens; those of level None are what the head
    receives, or would.

    Args:
        model: which sows what the head receives, and the output of each level.
        params: of the model; others may lie beside them.
        images: float32.
        levels: from 0.
    """
    outputs, sown = model.apply({"params": params}, images, mutable=["intermediates", "features"])
    taken = {}
    for level in levels:
        if level is None:
            (pooled,) = sown["features"]["pooled"]
        else:
            (blocks,) = sown["intermediates"][f"level_{level}"]  # [B, T, N, C]
            pooled = jnp.mean(blocks.astype(jnp.float32), axis=(1, 2))
        taken[level] = pooled.astype(jnp.float32)
    return evaluators.Seen(outputs, taken)


def key(level: evaluators.Level) -> str:
    """The name of the features of a level among the arrays of `Examples`."""
    return evaluators.titled("features", level)


class Split(typing.NamedTuple):
    """Features of finite examples, float64 [N, C], with their labels."""

    features: np.ndarray  # of all examples; 0 where one is not finite
    labels: np.ndarray  # of all examples
    finite: np.ndarray  # whether all features of an example are, bool [N]

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of the finite examples."""
        return self.features[self.finite], self.labels[self.finite]


def split(examples: evaluators.Examples, level: evaluators.Level) -> Split:
    """The features of a level."""
    values = np.asarray(examples.arrays[key(level)], np.float64)
    finite = np.asarray(np.isfinite(values).all(axis=1))
    return Split(np.where(finite[:, None], values, 0.0), examples.labels, finite)


class OfFeatures(evaluators.Measure):
    """A measure of the features of one level, which learns from the reference examples.

    Attributes:
        level: of the model, from 0; None for what the head receives.
    """

    level: evaluators.Level
    uses_head: typing.ClassVar[bool] = False
    learns: typing.ClassVar[bool] = True

    @property
    def levels(self) -> tuple[evaluators.Level, ...]:
        return (self.level,)

    def finding(
        self,
        name: str,
        predicted: np.ndarray,
        asked: Split,
        known: Split,
        classes: evaluators.Classes,
        *more: str,
    ) -> evaluators.Finding:
        """The accuracy of predictions under a name, `notes`, and `more`."""
        told = (*notes(name, asked, known, classes), *more)
        return evaluators.Finding({name: evaluators.accuracy(right(predicted, asked))}, told)

    def observe(
        self, seen: evaluators.Seen, labels: jax.Array, classes: evaluators.Classes
    ) -> Mapping[str, jax.Array]:
        return {key(self.level): seen.features[self.level]}

    def splits(self, gathered: evaluators.Gathered) -> tuple[Split, Split]:
        """The features of the examples, and of those to learn from."""
        assert gathered.reference is not None
        return split(gathered.examples, self.level), split(gathered.reference, self.level)


def notes(
    name: str, asked: Split, reference: Split, classes: evaluators.Classes
) -> tuple[str, ...]:
    """Lines on features that are not finite, and on classes from which nothing is learnt."""
    told = []
    if bad := int((~asked.finite).sum()):
        told.append(
            f"{name}: {bad:,} of {len(asked.finite):,} examples have features that are not finite; "
            "they count as wrong"
        )
    if bad := int((~reference.finite).sum()):
        told.append(
            f"{name}: {bad:,} of {len(reference.finite):,} reference examples have features that "
            "are not finite; they are left out"
        )
    _, learnt = reference.known()
    if len(unknown := np.setdiff1d(asked.labels, learnt)):
        told.append(
            f"{name}: {len(unknown)} classes, {classes.names[unknown[0]]!r} the first, have no "
            "reference examples; theirs count as wrong"
        )
    return tuple(told)


def right(predicted: np.ndarray, asked: Split) -> np.ndarray:
    """Whether each prediction [N] is the label; never where a feature is not finite."""
    return (predicted == asked.labels) & asked.finite


class Scale(typing.NamedTuple):
    """Mean and deviation of each feature, [C]; a feature that is constant keeps its scale."""

    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features [N, C] of mean 0 and deviation 1."""
        return typing.cast(np.ndarray, (features - self.mean) / self.deviation)


def scale(features: np.ndarray) -> Scale:
    """That of features [N, C]."""
    deviation = features.std(axis=0)
    # Rounding leaves a constant feature a deviation of a few last bits.
    constant = deviation <= 1e-12 * np.abs(features).max(axis=0, initial=0.0)
    return Scale(features.mean(axis=0), np.where(constant, 1.0, deviation))
