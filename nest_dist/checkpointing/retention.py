"""Decides which checkpoints of a run are retained."""

import typing
from collections.abc import Mapping

from nest_dist.base import checks, failures, ranking, settings
from nest_dist.base.checks import Within

# Whether more of a metric is better.
METRICS = {
    "eval/top_1": True,
    "eval/top_5": True,
    "eval/precision_at_1": True,
    "eval/mean_average_precision": True,
    "eval/loss": False,
}


@settings.register
class Retention:
    """A checkpoint is retained while `last`, `every_steps` or `best` asks for it.

    Attributes:
        last: retains this number of the newest checkpoints, at least 1.
        every_steps: retains each step that is a multiple of it; None for none.
        best: retains this number of checkpoints with the best `metric`. A metric that is not finite
            counts as the worst.
        metric: of the evaluation at the step: eval/top_1, eval/top_5, eval/loss, and of several
            classes a picture eval/precision_at_1 or eval/mean_average_precision.
    """

    last: typing.Annotated[int, Within(1)] = 3
    every_steps: typing.Annotated[int, Within(1)] | None = None
    best: typing.Annotated[int, Within(0)] = 0
    metric: str = "eval/top_1"

    def __post_init__(self) -> None:
        checks.one_of("Retention.metric", self.metric, METRICS)

    def require_evaluated(self, save_every: int, evaluate_every: int) -> None:
        """Checks that `best` can be decided: each regular checkpoint has an evaluation.

        Raises:
            BadInput: if checkpoints are made at steps without one.
        """
        if self.best and save_every % evaluate_every:
            raise failures.BadInput(
                f"Retention.best is {self.best}, but a checkpoint each {save_every} steps has no "
                f"evaluation of its own with one each {evaluate_every} steps; make "
                "Cadence.save_every_epochs a multiple of Evaluation.every_epochs, or leave "
                "Retention.best at 0."
            )

    def retained(self, checkpoints: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps whose checkpoints are retained.

        Args:
            checkpoints: for each step the metrics of its evaluation; empty without one.
        """
        steps = sorted(checkpoints)
        retained = set(steps[-self.last :])
        if self.every_steps is not None:
            retained |= {step for step in steps if step % self.every_steps == 0}
        if self.best:
            more_is_better = METRICS[self.metric]
            # The step breaks ties: of equal metrics the later checkpoint is better.
            measured = [
                (ranking.merit(checkpoints[step][self.metric], more_is_better), step)
                for step in steps
                if self.metric in checkpoints[step]
            ]
            retained |= {step for _, step in sorted(measured)[-self.best :]}
        return retained
