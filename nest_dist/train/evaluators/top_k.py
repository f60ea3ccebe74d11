"""Exact top-k accuracy, for any k."""

import typing
from collections.abc import Mapping

import jax

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.train import evaluators, ranks


@settings.register
class TopK(evaluators.Measure):
    """The share of examples whose label is among the k highest logits: `top_10`.

    Ties count against the label, and so does each logit that is NaN.

    Attributes:
        k: one or several, each below the number of classes.
    """

    k: typing.Annotated[tuple[int, ...], Within(1)] = (1, 5)

    def metrics(self) -> tuple[str, ...]:
        return tuple(f"top_{k}" for k in self.k)

    def require_fit(self, classes: evaluators.Classes, examples: int, reference: int) -> None:
        if wrong := [k for k in self.k if k >= len(classes.names)]:
            raise failures.BadInput(
                f"TopK.k has {wrong[0]}, and there are {len(classes.names)} classes, of which "
                "every label is among so many; give smaller numbers."
            )

    def observe(
        self, seen: evaluators.Seen, labels: jax.Array, classes: evaluators.Classes
    ) -> Mapping[str, jax.Array]:
        return {"rank": ranks.of_label(seen.outputs, labels)}

    def conclude(self, gathered: evaluators.Gathered) -> evaluators.Finding:
        rank = gathered.examples.arrays["rank"]
        return evaluators.Finding({f"top_{k}": evaluators.accuracy(rank <= k) for k in self.k})
