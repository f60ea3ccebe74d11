"""Learning rate by step: the shape of the curve; the optimizer has its peak.

Each begins with a linear warm-up from 0. A length is a number of epochs, or a text: "500 steps", or
"5%" of the run.
"""

import itertools
import typing

import jax
import jax.numpy as jnp
import optax

from nest_dist.base import checks, failures, lengths, settings
from nest_dist.base.checks import Within

Length = typing.Annotated[lengths.Length, lengths.Within(0)]
Rate = typing.Annotated[float, Within(0)]


class Schedule(typing.Protocol):
    """A schedule as gin configures it."""

    def build(self, peak: float, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
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
        first_step: at which the first step reads the curve; the official code counts from 1.
    Source: arXiv 1608.03983, equation 5, without restarts; arXiv 2105.12723, appendix.
    """

    warmup_epochs: Length
    final_learning_rate: Rate = 0.0
    first_step: typing.Literal[0, 1] = 0

    def build(self, peak: float, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
        _require_below_peak(self, self.final_learning_rate, peak)
        curve = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=peak,
            warmup_steps=_warmup_steps(self, self.warmup_epochs, num_steps, steps_per_epoch),
            decay_steps=num_steps,
            end_value=self.final_learning_rate,
        )
        return curve if self.first_step == 0 else lambda step: curve(step + self.first_step)


@settings.register
class Linear:
    """Linear warm-up from 0, then a straight line down to the end of the run.

    Attributes:
        warmup_epochs: of linear growth.
        final_learning_rate: at the end of the line.
    """

    warmup_epochs: Length
    final_learning_rate: Rate = 0.0

    def build(self, peak: float, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
        _require_below_peak(self, self.final_learning_rate, peak)
        warmup = _warmup_steps(self, self.warmup_epochs, num_steps, steps_per_epoch)
        down = optax.linear_schedule(peak, self.final_learning_rate, num_steps - warmup)
        return _after_warmup(peak, warmup, down)


@settings.register
class Constant:
    """Linear warm-up from 0, then the peak to the end of the run.

    Attributes:
        warmup_epochs: of linear growth.
    """

    warmup_epochs: Length = 0.0

    def build(self, peak: float, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
        warmup = _warmup_steps(self, self.warmup_epochs, num_steps, steps_per_epoch)
        return _after_warmup(peak, warmup, optax.constant_schedule(peak))


@settings.register
class Stepped:
    """Linear warm-up from 0, then the peak, multiplied by `factor` at each of some times.

    Attributes:
        at_epochs: since the start of the run, ascending.
        warmup_epochs: of linear growth; ends before the first of them.
        factor: of each step down.
    """

    at_epochs: typing.Annotated[tuple[lengths.Length, ...], lengths.Within(0)]
    warmup_epochs: Length = 0.0
    factor: typing.Annotated[float, Within(0, 1)] = 0.1

    def build(self, peak: float, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
        warmup = _warmup_steps(self, self.warmup_epochs, num_steps, steps_per_epoch)
        at = [lengths.in_steps(length, steps_per_epoch, num_steps) for length in self.at_epochs]
        edges = [warmup, *at, num_steps]
        if any(right <= left for left, right in itertools.pairwise(edges)):
            raise failures.BadInput(
                f"Stepped.at_epochs is {self.at_epochs}, which is at steps {at} of a run of "
                f"{num_steps} with {warmup} of warm-up; give ascending times between them."
            )
        falling = optax.piecewise_constant_schedule(
            peak, {step - warmup: self.factor for step in at}
        )
        return _after_warmup(peak, warmup, falling)


@settings.register
class WarmupStableDecay:
    """Linear warm-up from 0, then the peak, and at the end of the run a straight line down.

    Attributes:
        warmup_epochs: of linear growth.
        decay_epochs: of the line.
        final_learning_rate: at its end.
    Source: arXiv 2404.06395, section 4.2.
    """

    warmup_epochs: Length
    decay_epochs: Length
    final_learning_rate: Rate = 0.0

    def build(self, peak: float, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
        _require_below_peak(self, self.final_learning_rate, peak)
        warmup = _warmup_steps(self, self.warmup_epochs, num_steps, steps_per_epoch)
        decay = lengths.in_steps(self.decay_epochs, steps_per_epoch, num_steps)
        if not 0 < decay <= num_steps - warmup:
            raise failures.BadInput(
                f"WarmupStableDecay.decay_epochs is {self.decay_epochs}, which is {decay} steps; "
                f"a run of {num_steps} with {warmup} of warm-up has room for 1 to "
                f"{num_steps - warmup}: change it."
            )
        down = optax.linear_schedule(
            peak, self.final_learning_rate, decay, num_steps - warmup - decay
        )
        return _after_warmup(peak, warmup, down)


def ema_decay(final: float, step: jax.typing.ArrayLike) -> jax.Array:
    """Decay of the moving average of the parameters after `step` steps.

    Early steps move the parameters far, so the decay starts small and grows.
    """
    return jnp.minimum(final, (1 + step) / (10 + step))


def _after_warmup(peak: float, warmup_steps: int, then: optax.Schedule) -> optax.Schedule:
    """`then`, counted from the end of a linear warm-up."""
    up = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([up, then], [warmup_steps])


def _warmup_steps(
    schedule: Schedule, warmup: lengths.Length, num_steps: int, steps_per_epoch: float
) -> int:
    steps = lengths.in_steps(warmup, steps_per_epoch, num_steps)
    if steps >= num_steps:
        raise failures.BadInput(
            f"{type(schedule).__name__}.warmup_epochs is {warmup}, which is {steps} steps of a run "
            f"of {num_steps}; lower it or raise Run.num_epochs."
        )
    return steps


def _require_below_peak(schedule: Schedule, final: float, peak: float) -> None:
    checks.in_range(f"{type(schedule).__name__}.final_learning_rate", final, 0, peak)
