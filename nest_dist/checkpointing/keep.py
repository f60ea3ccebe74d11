"""Which checkpoints of a run stay."""

import dataclasses
from collections.abc import Mapping

import gin

from nest_dist.base import checks, failures

# Whether more of a metric is better.
METRICS = {"eval/top_1": True, "eval/top_5": True, "eval/loss": False}


@gin.register
@dataclasses.dataclass(frozen=True)
class Keep:
    """A checkpoint stays while any of the three asks for it; the newest always stays.

    Attributes:
        last: how many of the newest.
        every_steps: all whose step is a multiple of it; None for no such.
        best: how many of those with the best `metric` at their step.
        metric: of an evaluation: eval/top_1, eval/top_5 or eval/loss.
    """

    last: int = 3
    every_steps: int | None = None
    best: int = 0
    metric: str = "eval/top_1"

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("Keep.last", self.last, 1)
        checks.in_range("Keep.best", self.best, 0)
        if self.every_steps is not None:
            checks.in_range("Keep.every_steps", self.every_steps, 1)
        checks.one_of("Keep.metric", self.metric, METRICS)

    def require_evaluated(self, save_every: int, evaluate_every: int) -> None:
        """Checks that the best can be told: each regular checkpoint has an evaluation.

        Raises:
            BadInput: if checkpoints are made at steps without one.
        """
        if self.best and save_every % evaluate_every:
            raise failures.BadInput(
                f"Keep.best is {self.best}, but a checkpoint each {save_every} steps has no "
                f"evaluation of its own with one each {evaluate_every} steps; make "
                "Run.save_every_epochs a multiple of Run.evaluate_every_epochs, or leave Keep.best "
                "at 0."
            )

    def kept(self, checkpoints: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps that stay.

        Args:
            checkpoints: for each step what its evaluation measured; nothing if there was none.
        """
        steps = sorted(checkpoints)
        kept = set(steps[-self.last :])
        if self.every_steps is not None:
            kept |= {step for step in steps if step % self.every_steps == 0}
        if self.best:
            sign = 1 if METRICS[self.metric] else -1
            # Of equal ones the later.
            measured = [
                (sign * checkpoints[step][self.metric], step)
                for step in steps
                if self.metric in checkpoints[step]
            ]
            kept |= {step for _, step in sorted(measured)[-self.best :]}
        return kept
