"""The compiled steps and open files of a run, as the callbacks of the loop."""

import contextlib
import dataclasses
import functools
import itertools
import typing
from collections.abc import Callable, Mapping

import jax

from nest_dist.checkpointing import manager, replicas
from nest_dist.cluster import supervisor
from nest_dist.data import prefetch
from nest_dist.experiment import confusions, evaluations, pretext_gallery, resume
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import gallery as galleries
from nest_dist.telemetry import goodput, profile, staging
from nest_dist.telemetry import report as reports
from nest_dist.train import loop, metrics_log
from nest_dist.train import state as states

Step = Callable[[states.TrainState, typing.Any], tuple[states.TrainState, typing.Any]]


@dataclasses.dataclass(frozen=True)
class Session:
    """A run that is ready for its first step.

    Attributes:
        experiment: with the classes in the order of the checkpoint.
        during: (cause) -> a context whose time counts under this cause.
        first_state: makes the state before the first step, to which a rewind may go back.
        told: notes of evaluations, each of which is shown once.
    """

    experiment: experiments.Experiment
    supervision: supervisor.Supervisor
    ledger: goodput.Ledger
    during: Callable[[str], contextlib.AbstractContextManager[None]]
    checkpoints: manager.Manager
    staging_folder: staging.StagingFolder
    report: reports.Report
    first_state: Callable[[], states.TrainState]
    step: Step
    evaluation_steps: tuple[jax.stages.Compiled, ...]
    gallery: galleries.Gallery | pretext_gallery.PretextGallery
    told: set[str] = dataclasses.field(default_factory=set)

    def train(self, start: resume.Start, state: states.TrainState) -> int:
        """Trains to the last step; rewinds to a checkpoint if `NonFinite.policy` is "rewind".

        The buffers of `state` are donated.

        Returns:
            The number of the last step, which early stopping may have chosen.
        """
        policy = self.experiment.run.step.nonfinite
        rewinds = 0
        step = self._first_told()
        while True:
            try:
                return self._loop(step, start, state)
            except metrics_log.NonFinite as failure:
                rewinds += 1
                if policy.policy != "rewind" or rewinds > policy.limit:
                    raise
                with self.during("restore"):
                    start = resume.rewind(self.checkpoints, self.experiment, start, failure.step)
                    state = start.state or self.first_state()
                self.ledger.rewind(start.step)
                self.report.rewind(start.step)
                self.report.say(
                    f"{failure} Going back to step {start.step} and leaving out the data of the "
                    f"{failure.step - start.step} steps from there ({rewinds} of {policy.limit} "
                    "times)."
                )

    def evaluate(
        self, state: states.TrainState, number: int, show: bool = False
    ) -> Mapping[str, float] | None:
        """Metrics of a state by an evaluation, None if a stop interrupts it.

        Args:
            show: whether pictures and tables are recorded.
        """
        step, opened = int(state.step), self.experiment.evaluations[number]
        page = None
        if show and opened.config.of_objective:
            page = functools.partial(self._show, step, state.evaluated, opened.config.prefix)
        outcome = evaluations.make(
            self.experiment,
            number,
            self.evaluation_steps[number],
            state.evaluated,
            page,
            self.supervision.stop_is_next,
            self.supervision.tick,
        )
        if outcome is None:
            return None
        for note in outcome.notes:
            if note not in self.told:
                self.told.add(note)
                self.report.say(note)
        if show and outcome.confused is not None:
            folder = self.staging_folder.folder
            confusions.record(self.report, folder, opened, outcome.confused, step)
        return outcome.metrics

    def _show(
        self,
        step: int,
        params: states.Params,
        prefix: str,
        batch: prefetch.DeviceBatch,
        measured: Mapping[str, jax.Array],
    ) -> None:
        # Measures may need more arrays than the objective.
        shown = {name: batch[name] for name in self.experiment.batch_shapes()[1]}
        self.gallery.evaluation(step, params, prefix, shown, measured)

    def _loop(self, step: Step, start: resume.Start, state: states.TrainState) -> int:
        """Trains from a start to the last step, its number, or to one that is not finite."""
        run, policy = self.experiment.run, self.experiment.run.step.nonfinite
        first_batch = start.step + start.left_out
        history = start.history

        def save(step: int, state: states.TrainState) -> None:
            self._save(resume.metadata(self.experiment, start.left_out, history), step, state)

        def ends(step: int, metrics: metrics_log.Metrics) -> bool:
            nonlocal history
            if (rule := run.early_stopping) is None:
                return False
            history = rule.after(history, step, metrics)
            if due := rule.is_due(history):
                self.report.say(rule.reason(history))
            return due

        batches = self.experiment.training_batches(first_batch, self.supervision.stop_is_next)
        with contextlib.closing(batches), self._profiler(start.step) as profiler:
            callbacks = loop.LoopCallbacks(
                step=self._watched(step, start.step),
                batches=self.gallery.training(batches, start.step),
                steps_done=lambda current: int(current.step),
                evaluate=functools.partial(self.evaluate, show=True),
                save=save,
                ends=ends,
                record=self.checkpoints.record,
                report=functools.partial(self._record, start.left_out),
                stop_reached=self._stop_reached,
                global_batch=run.global_batch,
                say=self.report.say,
                most_skipped=policy.limit if policy.policy == "skip" else 0,
                before_step=profiler.before_step,
                during=self.during,
            )
            with self.during("step"):
                intervals = self.experiment.intervals
                last = loop.run(state, start.step, intervals, callbacks, start.missing)
            return int(last.step)

    def _first_told(self) -> Step:
        """The step; when the first is done, the report says how long the start took, and why."""
        told = False

        def step(state: states.TrainState, batch: object) -> tuple[states.TrainState, typing.Any]:
            nonlocal told
            result: tuple[states.TrainState, typing.Any] = self.step(state, batch)
            if not told:
                told = True
                jax.block_until_ready(result)
                self.report.say(self.ledger.first_step())
            return result

        return step

    def _watched(self, step: Step, first_step: int) -> Step:
        """The step; every so many, replicas are compared before it, or it is done twice."""
        watch, steps = self.experiment.run.watch, itertools.count(first_step)
        if watch.compare_every_steps is None and watch.repeat_every_steps is None:
            return step

        def watched(
            state: states.TrainState, batch: object
        ) -> tuple[states.TrainState, typing.Any]:
            done = next(steps)

            def is_due(every: int | None) -> bool:
                return every is not None and done > first_step and done % every == 0

            if is_due(watch.compare_every_steps):
                replicas.require_equal(state.params, done)
            if not is_due(watch.repeat_every_steps):
                return step(state, batch)
            sums = replicas.local_sums(step(manager.copied(state), batch)[0])
            result = step(state, batch)
            replicas.require_same(sums, replicas.local_sums(result[0]), done + 1)
            return result

        return watched

    def _profiler(self, steps_done: int) -> profile.Profiler:
        cadence = self.experiment.run.cadence
        planned = cadence.profile_first_step
        return profile.Profiler(
            first_step=planned if planned and planned > steps_done else None,
            num_steps=cadence.profile_num_steps,
            workdir=self.staging_folder.folder,
            look_every=self.experiment.intervals.log_every,
            done=self._say_traced,
        )

    def _say_traced(self, text: str) -> None:
        self.report.say(text)
        self.staging_folder.copy()

    def _record(self, left_out: int, step: int, metrics: metrics_log.StepMetrics) -> None:
        drawn = self.experiment.data_metrics(step + left_out)
        self.report.metrics(step, {**metrics, **drawn, **self.supervision.pace()})
        self.ledger.write(at_once=False)

    def _stop_reached(self) -> bool:
        self.checkpoints.raise_failure()
        return self.supervision.tick()

    def _save(self, metadata: manager.Metadata, step: int, state: states.TrainState) -> None:
        if self.experiment.run.watch.compare_every_steps is not None:
            replicas.require_equal(state.params, step)
        self.ledger.saved(step)
        self.report.metrics(step, self.ledger.metrics())
        self.checkpoints.save(step, state, metadata)
        for note in self.checkpoints.notes():
            self.report.say(note)
        self.report.flush()
        self.staging_folder.copy()
