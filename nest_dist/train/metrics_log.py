"""Metrics from the devices to the report: checked, and averaged over windows of steps."""

import math
import time
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from nest_dist.base import failures

Metrics = Mapping[str, float]
# Metrics of a training step; histograms are vectors.
StepMetrics = Mapping[str, float | np.ndarray]

# Metrics of a step that must be finite.
WATCHED = ("train/loss", "train/gradient_norm", "train/update_norm")
_REMEDY = (
    "lower AdamW.peak_learning_rate, use float32, or set NonFinite.policy to skip such updates or "
    "to rewind."
)


class NonFinite(failures.Failure):
    """A loss or an update is not finite.

    Attributes:
        step: the first step with such a value.
    """

    def __init__(self, step: int, text: str) -> None:
        super().__init__(f"{text}; {_REMEDY}")
        self.step = step


class MetricsLog:
    """Reports means over windows: the steps between two log steps, or a log step and a checkpoint.

    A window is read when the next one ends, so that the devices never wait for it.
    """

    def __init__(
        self,
        first_step: int,
        report: Callable[[int, StepMetrics], None],
        global_batch: int,
        most_skipped: int,
    ) -> None:
        """Begins after `first_step` steps; the other arguments are those of `LoopCallbacks`."""
        self._step, self._report = first_step, report
        self._global_batch, self._most_skipped = global_batch, most_skipped
        self._skipped = 0
        self._open: list[Mapping[str, jax.Array]] = []
        self._closed: list[Mapping[str, jax.Array]] = []
        self._speed: dict[str, float] = {}  # of the closed window
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes the time since the last step, such as an evaluation's, from the speed."""
        self._timed_steps, self._waited, self._started = 0, 0.0, time.perf_counter()

    def add(self, metrics: Mapping[str, jax.Array], waited: float) -> None:
        """Appends a step that waited this many seconds for data; reads nothing."""
        self._open.append(metrics)
        self._timed_steps += 1
        self._waited += waited

    def close_window(self) -> None:
        """Ends the window, and reports the one before it."""
        self.report_closed()
        seconds, self._speed = time.perf_counter() - self._started, {}
        if self._timed_steps:
            self._speed = {
                "speed/step_seconds": seconds / self._timed_steps,
                "speed/images_per_second": self._timed_steps * self._global_batch / seconds,
                "time/data_wait_fraction": min(1.0, self._waited / seconds),
            }
        self._closed, self._open = self._open, []
        self.restart_clock()

    def report_closed(self) -> None:
        """Reports the window that is closed, if there is one.

        Raises:
            NonFinite: for a step that is not finite and may not be skipped.
        """
        if not self._closed:
            return
        steps, self._closed = self._closed, []
        vectors = {name: value for name, value in steps[-1].items() if value.ndim}
        scalars = [
            {name: value for name, value in step.items() if name not in vectors} for step in steps
        ]
        finite = []
        for fetched in jax.device_get(scalars):
            metrics = {name: float(value) for name, value in fetched.items()}
            self._step += 1
            if self._is_finite(self._step, metrics, WATCHED):
                finite.append(metrics)
        means: dict[str, float | np.ndarray] = {}
        if finite:
            means |= {name: sum(m[name] for m in finite) / len(finite) for name in finite[0]}
            means |= {**self._speed, **jax.device_get(vectors)}
        if "train/skipped" in scalars[0]:
            means["train/skipped"] = self._skipped
        if means:
            self._report(self._step, means)

    def check_evaluation(self, step: int, metrics: Metrics) -> None:
        """Treats an evaluation that is not finite as an update that is not."""
        if not all(map(math.isfinite, metrics.values())):
            self.close_window()
            self.report_closed()  # an update before it may be the cause
            self._is_finite(step, metrics, metrics)

    def _is_finite(self, step: int, metrics: Metrics, names: Iterable[str]) -> bool:
        """False for a step that may be skipped."""
        wrong = [name for name in names if not math.isfinite(metrics.get(name, 0))]
        if not wrong:
            return True
        if not self._most_skipped:
            raise NonFinite(step, f"{wrong[0]} is {metrics[wrong[0]]} at step {step}")
        self._skipped += 1
        if self._skipped > self._most_skipped:
            raise NonFinite(
                step,
                f"{self._skipped} updates were not finite up to step {step}, and NonFinite.limit "
                f"is {self._most_skipped}",
            )
        return False
