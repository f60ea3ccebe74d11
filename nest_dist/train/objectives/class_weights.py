"""Weights of the classes in a loss, given by name or from the counts of the data."""

import dataclasses
import math
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nest_dist.base import checks, failures, settings
from nest_dist.base.checks import Within

Objective = typing.TypeVar("Objective")


@settings.register
class ClassWeights:
    """Factors of the classes in the loss; 1 for a class of which nothing is said.

    Attributes:
        given: (name, factor) of classes, as (('rare', 4.0),); the factor is at least 0.
        by_counts: exponent in [0, 1] of a class's mean number of training examples over its own.
            1 gives all classes the same influence, 0 leaves counts aside. A class without examples
            has the factor 1.
    """

    given: tuple[tuple[str, float], ...] = ()
    by_counts: typing.Annotated[float, Within(0, 1)] = 0.0

    def __post_init__(self) -> None:
        for name, factor in self.given:
            if not 0 <= factor < math.inf:
                raise failures.BadInput(
                    f"ClassWeights.given has {factor} for class {name!r}; give a number from 0 on."
                )
        if len(dict(self.given)) < len(self.given):
            raise failures.BadInput(
                "ClassWeights.given names a class twice; give each class one factor."
            )

    def of_classes(
        self, names: Sequence[str], counts: Sequence[int] | None
    ) -> tuple[tuple[str, float], ...]:
        """The factor of every class, in the order of the labels.

        Args:
            counts: of the training examples that have each; None where they are not known.
        """
        factors = dict.fromkeys(names, 1.0)
        if self.by_counts:
            if counts is None:
                raise failures.BadInput(
                    f"ClassWeights.by_counts is {self.by_counts}, but the training data do not "
                    "tell how many examples each class has; write them with `nest-dist prepare`, "
                    "or give factors as ClassWeights.given."
                )
            mean = sum(counts) / max(1, sum(count > 0 for count in counts))
            for name, count in zip(names, counts, strict=True):
                factors[name] = (mean / count) ** self.by_counts if count else 1.0
        for name, factor in self.given:
            checks.one_of("a class in ClassWeights.given", name, names)
            factors[name] = factor
        return tuple(factors.items())


def resolved(
    objective: Objective, names: Sequence[str], counts: Sequence[int] | None, num_outputs: int
) -> Objective:
    """The objective with a factor for every class, if it has class weights; else as it is.

    Where the data is absent, and so has no names, all factors are 1: a step takes as long.
    """
    weights = getattr(objective, "class_weights", None)
    if weights is None:
        return objective
    if not names:
        complete = ClassWeights(tuple((str(label), 1.0) for label in range(num_outputs)))
    else:
        complete = ClassWeights(weights.of_classes(names, counts))
    return dataclasses.replace(objective, class_weights=complete)  # type: ignore[type-var]


def left_out(objective: Objective) -> Objective:
    """The objective without class weights, which evaluation does not need."""
    if getattr(objective, "class_weights", None) is None:
        return objective
    return dataclasses.replace(objective, class_weights=None)  # type: ignore[type-var]


def array(weights: ClassWeights | None, num_outputs: int) -> jax.Array | None:
    """The factors as float32 [num_outputs], after `resolved`; None without weights."""
    if weights is None:
        return None
    assert len(weights.given) == num_outputs
    return jnp.asarray([factor for _, factor in weights.given], jnp.float32)
