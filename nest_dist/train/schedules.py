"""Learning rate by step: the shape of the curve; the optimizer has its peak."""

import typing

import jax
import jax.numpy as jnp
import optax

from nest_dist.base import checks, failures, settings
from nest_dist.base.checks import Within


class Schedule(typing.Protocol):
    """A schedule as gin configures it."""

    def build(
        self, peak_learning_rate: float, num_steps: int, steps_per_epoch: float
    ) -> optax.Schedule:
        """Learning rate by step; `steps_per_epoch` need not be an integer.

        Raises:
            BadInput: if the curve does not fit the run.
        """


@settings.register
class Cosine:
    """Linear warm-up from 0, then half a cosine down to the end of the run.

    Attributes:
        warmup_epochs: of linear growth.
        final_learning_rate: at the end of the cosine.
    Source: arXiv 1608.03983, equation 5, without restarts; arXiv 2105.12723, appendix.
    """

    warmup_epochs: typing.Annotated[float, Within(0)]
    final_learning_rate: typing.Annotated[float, Within(0)] = 0.0

    def build(
        self, peak_learning_rate: float, num_steps: int, steps_per_epoch: float
    ) -> optax.Schedule:
        """See `Schedule.build`."""
        checks.in_range(
            "Cosine.final_learning_rate", self.final_learning_rate, 0, peak_learning_rate
        )
        warmup_steps = round(self.warmup_epochs * steps_per_epoch)
        if warmup_steps >= num_steps:
            raise failures.BadInput(
                f"Cosine.warmup_epochs is {self.warmup_epochs}, which is {warmup_steps} steps of a "
                f"run of {num_steps}; lower it or raise Run.num_epochs."
            )
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=peak_learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=num_steps,
            end_value=self.final_learning_rate,
        )


def ema_decay(final: float, step: jax.typing.ArrayLike) -> jax.Array:
    """Decay of the moving average of the parameters after `step` steps.

    Early steps move the parameters far, so the decay starts small and grows.
    """
    return jnp.minimum(final, (1 + step) / (10 + step))
