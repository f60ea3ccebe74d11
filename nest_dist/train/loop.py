"""The loop around the step. It knows no model, data, optimizer or file: it receives callables."""

import collections
import contextlib
import dataclasses
import math
import time
import typing
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from nest_dist.base import failures

State = typing.Any
Metrics = Mapping[str, float]
# Those of steps, of which some have vectors too.
StepMetrics = Mapping[str, float | np.ndarray]

# Steps given to the devices before the last of them is waited for: enough that the devices never
# wait for the host, few enough that times taken on the host are those of the devices.
STEPS_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Cadence:
    """What happens at which steps; each of them also happens after the last step.

    Attributes:
        num_steps: of the whole run.
        log_every: steps between two reports of training metrics.
        evaluate_every: steps between two evaluations.
        save_every: steps between two checkpoints.
    """

    num_steps: int
    log_every: int
    evaluate_every: int
    save_every: int

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens `every` so many steps happens after `step`."""
        return step % every == 0 or step == self.num_steps


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the loop calls.

    Attributes:
        step: (state, batch) -> (state, metrics on the device).
        batches: device batches, from the first step on.
        evaluate: (state) -> metrics.
        save: (step, state, metrics of the evaluation at this step if there was one),
            asynchronously.
        report: (step, metrics), on every process; only the lead writes.
        stop_reached: (step) -> whether all processes stop after it.
        global_batch: examples a step, for the speed.
        before_step: (step, wait), where wait() returns when the devices have done all before it.
        during: (cause) -> a context whose time belongs to profile, data_wait, evaluation or save.
    """

    step: Callable[[State, typing.Any], tuple[State, Mapping[str, jax.Array]]]
    batches: Iterator[typing.Any]
    evaluate: Callable[[State], Metrics]
    save: Callable[[int, State, Metrics], None]
    report: Callable[[int, StepMetrics], None]
    stop_reached: Callable[[int], bool]
    global_batch: int
    before_step: Callable[[int, Callable[[], None]], None] = lambda step, wait: None
    during: Callable[[str], contextlib.AbstractContextManager[typing.Any]] = contextlib.nullcontext


def run(state: State, first_step: int, cadence: Cadence, parts: Parts) -> State:
    """Trains from `first_step` to the end.

    Metrics are averaged between two log steps and read one log step late, so that reading them
    never makes the devices wait.

    Args:
        state: after `first_step` steps.
        first_step: steps already done.
        cadence: what happens when.
        parts: what is called.
    Returns:
        The state after the last step.
    Raises:
        Preempted: after a checkpoint was saved because the processes were asked to stop.
        Failure: if the loss is not finite.
    """
    window = _Window(first_step, parts.global_batch)
    unread: _Window | None = None
    running: collections.deque[Mapping[str, jax.Array]] = collections.deque()

    def wait() -> None:
        jax.block_until_ready(list(running))
        running.clear()

    for step in range(first_step + 1, cadence.num_steps + 1):
        with parts.during("profile"):
            parts.before_step(step, wait)
        asked = time.perf_counter()
        with parts.during("data_wait"):
            batch = next(parts.batches)
        window.waited += time.perf_counter() - asked
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = parts.step(state, batch)
        window.metrics.append(metrics)
        running.append(metrics)
        if len(running) > STEPS_AHEAD:
            jax.block_until_ready(running.popleft())

        stop = parts.stop_reached(step)
        save = stop or cadence.due(step, cadence.save_every)
        evaluate = not stop and cadence.due(step, cadence.evaluate_every)
        if stop or cadence.due(step, cadence.log_every):
            _report(unread, parts.report)
            unread, window = window, _Window(step, parts.global_batch)
            unread.close(step)
        if save or evaluate:
            # What a checkpoint has behind it is on record before the checkpoint is.
            wait()
            _report(unread, parts.report)
            unread = None
        measured: Metrics = {}
        if evaluate:
            with parts.during("evaluation"):
                measured = parts.evaluate(state)
                parts.report(step, measured)
        if save:
            with parts.during("save"):
                parts.save(step, state, measured)
        if save or evaluate:
            window.restart()
        if stop:
            raise failures.Preempted(f"stopped after step {step} of {cadence.num_steps}, saved")
    return state


class _Window:
    """The steps between two reports, and how long they took."""

    def __init__(self, step: int, global_batch: int) -> None:
        self.metrics: list[Mapping[str, jax.Array]] = []
        self.waited = 0.0
        self.last_step = step
        self._global_batch = global_batch
        self._counted_from = 0
        self._started = time.perf_counter()
        self._seconds = 0.0

    def restart(self) -> None:
        """Leaves what went before, such as an evaluation, out of the speed."""
        self._counted_from = len(self.metrics)
        self._started = time.perf_counter()
        self.waited = 0.0

    def close(self, step: int) -> None:
        self.last_step = step
        self._seconds = time.perf_counter() - self._started

    def read(self) -> dict[str, float | np.ndarray]:
        vectors = {name: value for name, value in self.metrics[-1].items() if value.ndim}
        fetched = jax.device_get(
            [
                {name: value for name, value in values.items() if name not in vectors}
                for values in self.metrics
            ]
        )
        means: dict[str, float | np.ndarray] = {
            name: sum(float(values[name]) for values in fetched) / len(fetched)
            for name in fetched[0]
        }
        means |= jax.device_get(vectors)
        if counted := len(fetched) - self._counted_from:
            means["speed/step_seconds"] = self._seconds / counted
            means["speed/images_per_second"] = counted * self._global_batch / self._seconds
            means["time/data_wait_fraction"] = min(1.0, self.waited / self._seconds)
        return means


def _report(window: _Window | None, report: Callable[[int, StepMetrics], None]) -> None:
    if window is None or not window.metrics:
        return
    metrics = window.read()
    report(window.last_step, metrics)
    if not math.isfinite(metrics["train/loss"]):
        raise failures.Failure(
            f"train/loss is {metrics['train/loss']} at step {window.last_step}; lower "
            "AdamW.peak_learning_rate or use float32, and resume from an earlier checkpoint."
        )
