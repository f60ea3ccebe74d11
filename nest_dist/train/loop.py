"""The loop around the step. It knows no model, data, optimizer or file: it receives callables."""

import collections
import contextlib
import dataclasses
import time
import typing
from collections.abc import Callable, Collection, Iterator, Mapping

import jax

from nest_dist.base import failures
from nest_dist.train import metrics_log

State = typing.Any

# Dispatched steps before the host waits for the oldest of them: the devices never wait for the
# host, and a time measured on the host is that of the devices.
STEPS_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Steps between reports, evaluations and checkpoints; all three also follow the last step.

    Each evaluation of the run has a number of steps of its own.
    """

    num_steps: int
    log_every: int
    evaluate_every: tuple[int, ...]
    save_every: int

    def due(self, step: int, every: int) -> bool:
        """Whether an action of every n-th step, n = `every`, follows `step`."""
        return step % every == 0 or step == self.num_steps

    def evaluations(self, step: int) -> list[int]:
        """The numbers of the evaluations that follow `step`."""
        return [it for it, every in enumerate(self.evaluate_every) if self.due(step, every)]


@dataclasses.dataclass(frozen=True)
class LoopCallbacks:
    """The functions and the batches that the loop uses.

    Attributes:
        step: (state, batch) -> (state, metrics on the device).
        batches: device batches, from the first step on; they may end where a stop is reached.
        steps_done: (state) -> its number of steps; waits for the devices.
        evaluate: (state, number of the evaluation) -> metrics; None if a stop interrupted it.
        save: (step, state); it only starts the save.
        record: (step, metrics of an evaluation); keeps them with the checkpoint of the step.
        report: (step, metrics), on every process; the primary one writes them.
        stop_reached: whether all processes stop now; called before each step, with its batch.
        global_batch: examples a step, for the speed.
        ends: (step, metrics of an evaluation) -> whether the run ends early; its checkpoint must
            be saved already.
        say: shows a line.
        most_skipped: number of updates that may be skipped because they are not finite.
        before_step: (step, wait); wait() returns when the devices have finished all earlier steps.
        during: (cause) -> a context; its time counts as profile, data_wait, evaluation or save.
    """

    step: Callable[[State, typing.Any], tuple[State, Mapping[str, jax.Array]]]
    batches: Iterator[typing.Any]
    steps_done: Callable[[State], int]
    evaluate: Callable[[State, int], metrics_log.Metrics | None]
    save: Callable[[int, State], None]
    record: Callable[[int, metrics_log.Metrics], None]
    report: Callable[[int, metrics_log.StepMetrics], None]
    stop_reached: Callable[[], bool]
    global_batch: int
    ends: Callable[[int, metrics_log.Metrics], bool] = lambda step, metrics: False
    say: Callable[[str], None] = lambda text: None
    most_skipped: int = 0
    before_step: Callable[[int, Callable[[], None]], None] = lambda step, wait: None
    during: Callable[[str], contextlib.AbstractContextManager[typing.Any]] = contextlib.nullcontext


def run(
    state: State,
    first_step: int,
    intervals: Intervals,
    callbacks: LoopCallbacks,
    missing: Collection[int] = (),
) -> State:
    """Trains from the step after `first_step` to the end.

    Args:
        state: after `first_step` steps.
        first_step: steps already done.
        intervals: of the actions around a step.
        callbacks: the step, its batches and these actions.
        missing: the numbers of the evaluations after `first_step` that were not recorded.
    Returns:
        The state after the last step, or after the evaluation that ended the run early.
    Raises:
        Preempted: after the checkpoint of a requested stop.
        NonFinite: for a loss or an update that is not finite, before its state is saved. If such
            updates are skipped: for more than `most_skipped` of them.
    """
    if (done := callbacks.steps_done(state)) != first_step:
        raise failures.Failure(
            f"the state has done {done} steps and the run goes on after step {first_step}; the "
            "checkpoint is of another step than its folder says: move it away."
        )
    log = metrics_log.MetricsLog(
        first_step,
        callbacks.report,
        callbacks.global_batch,
        callbacks.most_skipped,
        callbacks.say,
    )
    saved = first_step
    running: collections.deque[Mapping[str, jax.Array]] = collections.deque()

    def wait() -> None:
        jax.block_until_ready(state)

    def settle() -> None:
        wait()
        log.report_closed()
        log.restart_clock()

    def save(done: int) -> None:
        nonlocal saved
        log.close_window()
        settle()  # which refuses metrics that are not finite
        with callbacks.during("save"):
            callbacks.save(done, state)
        saved = done
        log.restart_clock()

    def evaluate(done: int, number: int) -> bool:
        """Whether the run ends here."""
        settle()
        with callbacks.during("evaluation"):
            metrics = callbacks.evaluate(state, number)
        if metrics is None:
            stop(done)
        callbacks.report(done, metrics)
        log.check_evaluation(done, metrics)
        callbacks.record(done, metrics)
        log.restart_clock()
        return callbacks.ends(done, metrics)

    def evaluate_all(done: int, numbers: Collection[int]) -> bool:
        """Whether the run ends here; the others are made, too."""
        ends = [evaluate(done, number) for number in numbers]
        return any(ends)

    def stop(done: int) -> typing.NoReturn:
        if saved < done:
            save(done)
        kept = "saved" if done else "nothing to save"
        raise failures.Preempted(f"stopped after step {done} of {intervals.num_steps}, {kept}")

    if evaluate_all(first_step, missing):
        return state
    for step in range(first_step + 1, intervals.num_steps + 1):
        with callbacks.during("profile"):
            callbacks.before_step(step, wait)
        asked = time.perf_counter()
        with callbacks.during("data_wait"):
            batch = next(callbacks.batches, None)
        if callbacks.stop_reached():
            stop(step - 1)
        waited = time.perf_counter() - asked
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = callbacks.step(state, batch)
        log.add(metrics, waited)
        running.append(metrics)
        if len(running) > STEPS_AHEAD:
            jax.block_until_ready(running.popleft())

        if intervals.due(step, intervals.log_every):
            log.close_window()
        if intervals.due(step, intervals.save_every):
            save(step)
        if evaluate_all(step, intervals.evaluations(step)):
            break
    return state
