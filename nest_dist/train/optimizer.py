"""AdamW; which parameters decay is decided by name."""

import typing
from collections.abc import Sequence

import optax

from nest_dist.base import failures, settings, tree_paths
from nest_dist.base.checks import Within


class Optimizer(typing.Protocol):
    """An optimizer as gin configures it: from gradients to updates.

    Attributes:
        peak_learning_rate: the height of the schedule.
    """

    peak_learning_rate: float

    def build(
        self, learning_rate: optax.Schedule, no_weight_decay: Sequence[str]
    ) -> optax.GradientTransformation:
        """The transformation; `no_weight_decay` are name patterns of parameters."""


@settings.register
class AdamW:
    """The paper's optimizer.

    Attributes:
        peak_learning_rate: reached at the end of the warm-up. The paper's is 2.5e-4 for each 256
            examples of the global batch.
        weight_decay: times the learning rate, subtracted from each parameter that decays.
        beta_1: decay of the mean of gradients.
        beta_2: decay of the mean of squared gradients.
        epsilon: added to the root in the denominator.
    Source: arXiv 1711.05101, algorithm 2; arXiv 2105.12723, appendix.
    """

    peak_learning_rate: typing.Annotated[float, Within(0)]
    weight_decay: typing.Annotated[float, Within(0)] = 0.05
    beta_1: typing.Annotated[float, Within(0, 1, open_high=True)] = 0.9
    beta_2: typing.Annotated[float, Within(0, 1, open_high=True)] = 0.999
    epsilon: typing.Annotated[float, Within(0)] = 1e-8

    def build(
        self, learning_rate: optax.Schedule, no_weight_decay: Sequence[str]
    ) -> optax.GradientTransformation:
        """See `Optimizer.build`."""
        return optax.adamw(
            learning_rate,
            b1=self.beta_1,
            b2=self.beta_2,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            mask=lambda params: decay_mask(params, no_weight_decay),
        )


def decay_mask(params: tree_paths.Tree, no_weight_decay: Sequence[str]) -> tree_paths.Tree:
    """Whether weight decay applies to each parameter, by name patterns of those without.

    Raises:
        BadInput: for a pattern that fits no parameter.
    """
    known = tree_paths.flatten(params)
    for pattern in no_weight_decay:
        if not any(tree_paths.matches(name, [pattern]) for name in known):
            raise failures.BadInput(
                f"{pattern!r} names parameters without weight decay, but no parameter fits it; "
                f"the names are like {next(iter(known))!r}."
            )
    return tree_paths.map_named(
        lambda name, _: not tree_paths.matches(name, no_weight_decay), params
    )
