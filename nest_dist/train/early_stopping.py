"""Ends a run once its evaluations improve no more. What it knows lies in each checkpoint."""

import dataclasses
import typing
from collections.abc import Mapping

from nest_dist.base import failures, ranking, settings
from nest_dist.base.checks import Within
from nest_dist.checkpointing import retention


@dataclasses.dataclass(frozen=True)
class History:
    """The evaluations so far."""

    step: int = 0  # of the last one
    best: float | None = None  # the best value of the metric; None before the first that is finite
    best_step: int = 0  # its step
    without: int = 0  # evaluations since then


NONE = History()


@settings.register
class EarlyStopping:
    """The run ends after `patience` evaluations in a row without improvement.

    Attributes:
        metric: of an evaluation, as `Retention.metric`.
        patience: number of evaluations with this metric.
        least_improvement: over the best value so far, below which nothing counts as improved.
    """

    metric: str = "eval/top_1"
    patience: typing.Annotated[int, Within(1)] = 5
    least_improvement: typing.Annotated[float, Within(0)] = 0.0

    def __post_init__(self) -> None:
        retention.require_metric("EarlyStopping.metric", self.metric)

    def require_kept(self, kept: retention.Retention, save_every: int, evaluate_every: int) -> None:
        """Checks that the checkpoint of the best evaluation stays."""
        if not kept.best or kept.metric != self.metric:
            raise failures.BadInput(
                f"EarlyStopping.metric is {self.metric}, by which no best checkpoint is retained; "
                f"set Retention.best to 1 and Retention.metric to {self.metric!r}."
            )
        if evaluate_every % save_every:
            raise failures.BadInput(
                f"Run.early_stopping needs a checkpoint at each evaluation, but there is one each "
                f"{save_every} steps and an evaluation each {evaluate_every}; give "
                "Cadence.save_every_epochs the value of Evaluation.every_epochs."
            )

    def after(self, history: History, step: int, metrics: Mapping[str, float]) -> History:
        """The history with the evaluation of a step.

        One that it has already changes nothing, nor does one without the metric.
        """
        if step <= history.step or self.metric not in metrics:
            return history
        value, more = metrics[self.metric], retention.more_is_better(self.metric)
        merit = ranking.merit(value, more)
        before = -float("inf")
        if history.best is not None:
            before = ranking.merit(history.best, more) + self.least_improvement
        if merit > before:
            return History(step, value, step, 0)
        return dataclasses.replace(history, step=step, without=history.without + 1)

    def is_due(self, history: History) -> bool:
        return history.without >= self.patience

    def reason(self, history: History) -> str:
        best = "none" if history.best is None else f"{history.best:.6g}"
        return (
            f"ended early after step {history.step}: {self.metric} was best at step "
            f"{history.best_step}, {best}, and has not improved in {history.without} evaluations"
        )
