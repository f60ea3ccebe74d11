"""AdamW with linear warm-up and cosine decay; which parameters decay is decided by name."""

import dataclasses
from collections.abc import Iterable

import gin
import optax

from nest_dist.base import checks, failures, names


@gin.register
@dataclasses.dataclass(frozen=True)
class AdamW:
    """The paper's optimizer.

    Attributes:
        peak_learning_rate: reached at the end of the warm-up. The paper's is 2.5e-4 for each 256
            examples of the global batch.
        warmup_epochs: of linear growth from 0.
        weight_decay: times the learning rate, subtracted from each parameter that decays.
        beta_1: decay of the mean of gradients.
        beta_2: decay of the mean of squared gradients.
        epsilon: added to the root in the denominator.
        final_learning_rate: what the cosine ends at.
    Source: arXiv 1711.05101, algorithm 2; arXiv 2105.12723, appendix.
    """

    peak_learning_rate: float
    warmup_epochs: float
    weight_decay: float = 0.05
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    final_learning_rate: float = 0.0

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("AdamW.peak_learning_rate", self.peak_learning_rate, 0)
        checks.in_range("AdamW.warmup_epochs", self.warmup_epochs, 0)
        checks.in_range("AdamW.weight_decay", self.weight_decay, 0)
        checks.in_range("AdamW.beta_1", self.beta_1, 0, 1, open_high=True)
        checks.in_range("AdamW.beta_2", self.beta_2, 0, 1, open_high=True)
        checks.in_range("AdamW.epsilon", self.epsilon, 0)
        checks.in_range(
            "AdamW.final_learning_rate", self.final_learning_rate, 0, self.peak_learning_rate
        )

    def schedule(self, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
        """Learning rate by step.

        Raises:
            BadInput: if the warm-up is as long as the run or longer.
        """
        warmup_steps = round(self.warmup_epochs * steps_per_epoch)
        if warmup_steps >= num_steps:
            raise failures.BadInput(
                f"AdamW.warmup_epochs is {self.warmup_epochs}, which is {warmup_steps} steps of a "
                f"run of {num_steps}; lower it or raise Run.num_epochs."
            )
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.peak_learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=num_steps,
            end_value=self.final_learning_rate,
        )

    def build(
        self, schedule: optax.Schedule, not_decayed: Iterable[str]
    ) -> optax.GradientTransformation:
        """The update rule.

        Args:
            schedule: learning rate by step.
            not_decayed: name patterns of the parameters without weight decay.
        """
        patterns = tuple(not_decayed)
        return optax.adamw(
            schedule,
            b1=self.beta_1,
            b2=self.beta_2,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            mask=lambda params: decay_mask(params, patterns),
        )


def decay_mask(params: names.Tree, not_decayed: Iterable[str]) -> names.Tree:
    """Whether weight decay applies to each parameter.

    Args:
        params: a tree of anything.
        not_decayed: name patterns of those that it spares.
    Raises:
        BadInput: for a pattern that fits none of them.
    """
    patterns = tuple(not_decayed)
    known = names.flatten(params)
    for pattern in patterns:
        if not any(names.matches(name, [pattern]) for name in known):
            raise failures.BadInput(
                f"{pattern!r} names parameters without weight decay, but no parameter fits it; "
                f"the names are like {next(iter(known))!r}."
            )
    return names.map_named(lambda name, _: not names.matches(name, patterns), params)
