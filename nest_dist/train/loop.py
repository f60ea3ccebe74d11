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
# What must be finite for a state to be worth keeping.
WATCHED = ("train/loss", "train/gradient_norm", "train/update_norm")
_REMEDY = (
    "lower AdamW.peak_learning_rate, use float32, or set NotFinite.policy to skip such updates or "
    "to rewind."
)


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
        steps_done: (state) -> its number of steps; waits for the devices.
        evaluate: (state) -> metrics; None if it was left off because the processes stop.
        save: (step, state, metrics of the evaluation at this step if there was one, batches given
            since), asynchronously.
        report: (step, metrics), on every process; only the lead writes.
        stop_reached: whether all processes stop here; called after each step.
        global_batch: examples a step, for the speed.
        most_skipped: updates that may be left out because they are not finite.
        before_step: (step, wait), where wait() returns when the devices have done all before it.
        during: (cause) -> a context whose time belongs to profile, data_wait, evaluation or save.
    """

    step: Callable[[State, typing.Any], tuple[State, Mapping[str, jax.Array]]]
    batches: Iterator[typing.Any]
    steps_done: Callable[[State], int]
    evaluate: Callable[[State], Metrics | None]
    save: Callable[[int, State, Metrics, int], None]
    report: Callable[[int, StepMetrics], None]
    stop_reached: Callable[[], bool]
    global_batch: int
    most_skipped: int = 0
    before_step: Callable[[int, Callable[[], None]], None] = lambda step, wait: None
    during: Callable[[str], contextlib.AbstractContextManager[typing.Any]] = contextlib.nullcontext


class NotFinite(failures.Failure):
    """A loss or an update is not finite.

    Attributes:
        step: the first such.
    """

    def __init__(self, step: int, text: str) -> None:
        super().__init__(text)
        self.step = step


def run(state: State, first_step: int, cadence: Cadence, parts: Parts) -> State:
    """Trains from `first_step` to the end.

    Metrics are averaged between two log steps, or a log step and a checkpoint, and read one log
    step late, so that reading them never makes the devices wait.

    Args:
        state: after `first_step` steps.
        first_step: steps already done.
        cadence: what happens when.
        parts: what is called.
    Returns:
        The state after the last step.
    Raises:
        Preempted: after a checkpoint was saved because the processes were asked to stop.
        NotFinite: before anything is saved that has a loss or an update that is not finite behind
            it; if such updates are skipped, only once more of them were than may be.
    """
    log = _Log(first_step, parts)
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
        waited = time.perf_counter() - asked
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = parts.step(state, batch)
        log.add(metrics, waited)
        running.append(metrics)
        if len(running) > STEPS_AHEAD:
            jax.block_until_ready(running.popleft())

        stop = parts.stop_reached()
        save = cadence.due(step, cadence.save_every)
        evaluate = cadence.due(step, cadence.evaluate_every)
        if stop or save or cadence.due(step, cadence.log_every):
            log.close_window()
        if not (stop or save or evaluate):
            continue
        # What a checkpoint has behind it is on record, and sound, before the checkpoint is.
        wait()
        log.report_all()
        done = parts.steps_done(state)
        if done < step and not stop:
            continue  # a process is without data: the processes are about to stop
        measured: Metrics | None = None
        if evaluate and not stop:
            with parts.during("evaluation"):
                measured = parts.evaluate(state)
                if measured is not None:
                    parts.report(step, measured)
            stop = measured is None
        if (save or stop) and done > first_step:
            with parts.during("save"):
                parts.save(done, state, measured or {}, step - done)
        log.leave_out_time()
        if stop:
            raise failures.Preempted(f"stopped after step {done} of {cadence.num_steps}, saved")
    return state


class _Log:
    """Metrics from the devices to the report, a window of steps at a time."""

    def __init__(self, first_step: int, parts: Parts) -> None:
        self._parts = parts
        self._step = first_step
        self._skipped = 0
        self._open = _Window()
        self._unread: _Window | None = None

    def add(self, metrics: Mapping[str, jax.Array], waited: float) -> None:
        self._open.metrics.append(metrics)
        self._open.waited += waited

    def close_window(self) -> None:
        """Ends the window, and reports the one before it."""
        self.report_all()
        self._open.seconds = time.perf_counter() - self._open.started
        self._unread, self._open = self._open, _Window()

    def report_all(self) -> None:
        """Reports the window that is closed, if there is one."""
        window, self._unread = self._unread, None
        if window is None:
            return
        scalars, vectors = window.read()
        # A step without data is none.
        steps = [metrics for metrics in scalars if metrics.get("train/applied", 1)]
        for metrics in steps:
            self._step += 1
            self._check(metrics)
        sound = [metrics for metrics in steps if not metrics.get("train/skipped")]
        means = window.means(sound, self._parts.global_batch) if sound else {}
        means.update(vectors if sound else {})
        if steps and "train/skipped" in steps[0]:
            means["train/skipped"] = self._skipped
        if means:
            self._parts.report(self._step, means)

    def leave_out_time(self) -> None:
        """Leaves what went before, such as an evaluation, out of the speed."""
        self._open.counted_from = len(self._open.metrics)
        self._open.started = time.perf_counter()
        self._open.waited = 0.0

    def _check(self, metrics: Mapping[str, float]) -> None:
        if metrics.get("train/skipped"):
            self._skipped += 1
            if self._skipped > self._parts.most_skipped:
                raise NotFinite(
                    self._step,
                    f"{self._skipped} updates were not finite up to step {self._step}, and "
                    f"NotFinite.limit is {self._parts.most_skipped}; {_REMEDY}",
                )
            return
        for name in WATCHED:
            if not math.isfinite(metrics.get(name, 0)):
                raise NotFinite(
                    self._step, f"{name} is {metrics[name]} at step {self._step}; {_REMEDY}"
                )


@dataclasses.dataclass
class _Window:
    """The steps between two reports, and how long they took."""

    metrics: list[Mapping[str, jax.Array]] = dataclasses.field(default_factory=list)
    waited: float = 0.0
    counted_from: int = 0
    started: float = dataclasses.field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def read(self) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
        """The scalars of each step, and the vectors of the last one."""
        vectors = {name: value for name, value in self.metrics[-1].items() if value.ndim}
        fetched = jax.device_get(
            [
                {name: value for name, value in values.items() if name not in vectors}
                for values in self.metrics
            ]
        )
        scalars = [{name: float(value) for name, value in it.items()} for it in fetched]
        return scalars, jax.device_get(vectors)

    def means(
        self, steps: list[dict[str, float]], global_batch: int
    ) -> dict[str, float | np.ndarray]:
        means: dict[str, float | np.ndarray] = {
            name: sum(metrics[name] for metrics in steps) / len(steps)
            for name in steps[0]
            if name != "train/applied"
        }
        if counted := len(self.metrics) - self.counted_from:
            means["speed/step_seconds"] = self.seconds / counted
            means["speed/images_per_second"] = counted * global_batch / self.seconds
            means["time/data_wait_fraction"] = min(1.0, self.waited / self.seconds)
        return means
