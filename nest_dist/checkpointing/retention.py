"""Decides which checkpoints of a run are retained."""

import re
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
# Those of measures, of which more is better, and those of evaluations with names.
_OF_MEASURES = re.compile(
    r"eval/([\w-]+/)*(top_\d+|knn_\d+|few_shot_\d+|linear_probe|among_top_\d+|right_labels|"
    r"(mean|least)_class_accuracy)",
    re.ASCII,
)


def require_metric(name: str, metric: str) -> None:
    """Checks that a metric may be compared.

    Raises:
        BadInput: if it is unknown; `name` is the binding.
    """
    if not _OF_MEASURES.fullmatch(metric) and _of_objective(metric) not in METRICS:
        checks.one_of(name, metric, METRICS)


def more_is_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return METRICS.get(_of_objective(metric), True)


def _of_objective(metric: str) -> str:
    """Of an evaluation without a name."""
    return f"eval/{metric.rpartition('/')[2]}"


@settings.register
class Retention:
    """A checkpoint is retained while `last`, `every_steps` or `best` asks for it.

    Attributes:
        last: retains this number of the newest checkpoints, at least 1.
        every_steps: retains each step that is a multiple of it; None for none.
        best: retains this number of checkpoints with the best `metric`. A metric that is not finite
            counts as the worst.
        metric: of an evaluation at the step, such as eval/top_1, eval/top_5, eval/loss,
            eval/precision_at_1, eval/mean_average_precision, or eval/NAME/knn_20 of one with a
            name.
    """

    last: typing.Annotated[int, Within(1)] = 3
    every_steps: typing.Annotated[int, Within(1)] | None = None
    best: typing.Annotated[int, Within(0)] = 0
    metric: str = "eval/top_1"

    def __post_init__(self) -> None:
        require_metric("Retention.metric", self.metric)

    def require_evaluated(self, save_every: int, evaluate_every: int) -> None:
        """Checks that `best` can be decided: each regular checkpoint has an evaluation."""
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
            more = more_is_better(self.metric)
            # The step breaks ties: of equal metrics the later checkpoint is better.
            measured = [
                (ranking.merit(checkpoints[step][self.metric], more), step)
                for step in steps
                if self.metric in checkpoints[step]
            ]
            retained |= {step for _, step in sorted(measured)[-self.best :]}
        return retained
