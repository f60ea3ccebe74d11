"""The training of a run: from initial parameters or its newest checkpoint to its last step."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from nest_dist.checkpointing import manager
from nest_dist.cluster import lease, processes, supervisor
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import compile_cache, gallery, header, preflight, resume, session
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import run as runs
from nest_dist.telemetry import goodput, profile, staging, trackers
from nest_dist.telemetry import report as reports
from nest_dist.telemetry.trackers import channel
from nest_dist.train import state as states

# From a run and the names of its classes to its initial parameters by name, and lines that describe
# their origin.
InitialParams = Callable[[runs.Run, Sequence[str]], tuple[Mapping[str, np.ndarray], Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Training:
    """Opens and closes what a run needs, in the order in which it may fail."""

    workdir: workdirs.Folder
    experiment: experiments.Experiment
    config_gin: str  # the operative configuration as gin
    supervision: supervisor.Supervisor
    ledger: goodput.Ledger
    initial_params: InitialParams
    # Loads a step that was compiled beforehand; None compiles it here
    compiled: Callable[[], jax.stages.Compiled] | None
    held: lease.Lease

    def run(self, allow_change: bool) -> None:
        """Trains from the newest checkpoint of the workdir to the last step."""
        shapes = self.experiment.state_shapes  # may refuse the mesh: before anything takes long
        if (tracker_of_run := self.experiment.run.tracker) and processes.is_primary():
            channel.require(tracker_of_run, not isinstance(self.workdir, pathlib.Path))
        with contextlib.ExitStack() as opened:
            checkpoints = manager.Manager(
                self.workdir / workdirs.CHECKPOINTS,
                self.experiment.run.checkpoints,
                self.held.require_held,
            )
            opened.callback(checkpoints.close)
            checkpoints.require_room(shapes)
            with self._during("restore"):
                start = resume.find(checkpoints, self.experiment, allow_change)
                experiment = self.experiment.in_order(start.class_names)
                experiment = experiment.with_weights(start.weights)
                run = experiment.run
            staging_folder = opened.enter_context(self._staging_folder())
            tracker = opened.enter_context(self._tracker(staging_folder, experiment))
            report = self._report(staging_folder, start, tracker)
            opened.callback(report.close)
            opened.callback(self.ledger.close)
            config_gin = header.with_weights(self.config_gin, start.weights)
            header.write_header(report, self.workdir, staging_folder, experiment, config_gin, start)
            first_state = functools.partial(self._first_state, experiment, report.say)
            state = start.state or first_state()
            with self._during("compile"), compile_cache.enabled(self.workdir, report.say):
                ready = session.Session(
                    experiment=experiment,
                    supervision=self.supervision,
                    ledger=self.ledger,
                    during=self._during,
                    checkpoints=checkpoints,
                    staging_folder=staging_folder,
                    report=report,
                    first_state=first_state,
                    step=experiment.taught(
                        self.compiled() if self.compiled else experiment.compiled_train_step()
                    ),
                    evaluation_steps=tuple(
                        map(experiment.compiled_evaluation_step, range(len(run.evaluations)))
                    ),
                    gallery=gallery.of_run(experiment, report),
                )
            with self._during("compile"):
                # Else the first save would compile it, while training waits.
                checkpoints.warmup(state)
            self.supervision.begin(run.watch.stuck_seconds)
            # The faults of the evaluations' data are told before training.
            for number in range(len(run.evaluations)):
                with (
                    self._during("data_wait"),
                    contextlib.closing(
                        experiment.evaluation_batches(self.supervision.stop_is_next, number)
                    ) as batches,
                ):
                    next(batches, None)
            num_steps = experiment.intervals.num_steps
            rule = run.early_stopping
            ended_early = rule is not None and rule.is_due(start.history)
            if not start.missing and (start.step >= num_steps or ended_early):
                report.say(
                    f"the run is complete at step {start.step}; here is its evaluation again"
                )
                for number in range(len(run.evaluations)):
                    report.say_metrics(start.step, ready.evaluate(state, number) or {})
                return
            last_step = ready.train(start, state)
            with self._during("save"):
                checkpoints.wait()
            report.summary(last_step, run.global_batch, self.ledger)
            report.say(f"everything about the run is in {self.workdir}")

    def _staging_folder(self) -> staging.StagingFolder:
        if not processes.is_primary():
            return staging.StagingFolder(self.workdir)
        continued = (workdirs.GOODPUT, staging.METRICS, channel.NAME)
        return staging.StagingFolder(self.workdir, continued, (profile.REQUEST,))

    def _tracker(
        self, staging_folder: staging.StagingFolder, experiment: experiments.Experiment
    ) -> contextlib.AbstractContextManager[channel.Channel | None]:
        """What `Run.tracker` opens, on the primary process."""
        tracker = experiment.run.tracker
        if tracker is None or not processes.is_primary():
            return contextlib.nullcontext()
        if (key := channel.key(staging_folder.folder)) is None:
            return contextlib.nullcontext()
        identity = trackers.Identity(key, self.workdir.name, staging_folder.folder)
        return channel.Channel(tracker, identity, header.values(experiment))

    def _report(
        self,
        staging_folder: staging.StagingFolder,
        start: resume.Start,
        tracker: channel.Channel | None,
    ) -> reports.Report:
        """The report; the ledger goes on from the time of earlier attempts."""
        experiment = self.experiment
        folder = staging_folder.folder if processes.is_primary() else None
        self.ledger.resume(folder / workdirs.GOODPUT if folder else None, start.step)
        return reports.Report(
            folder,
            start.step,
            experiment.intervals.num_steps,
            experiment.steps_per_epoch,
            experiment.training_flops,
            [experiment.evaluation_marks[number] for number in start.missing],
            experiment.run.evaluation.split,
            tracker,
        )

    def _first_state(
        self, experiment: experiments.Experiment, say: Callable[[str], None]
    ) -> states.TrainState:
        """Initial parameters, or the weights of `Run.init_from` adapted to the model."""
        if experiment.run.init_from is None:
            return experiment.init_state()
        params, lines = self.initial_params(experiment.run, experiment.class_names)
        digest = hashlib.sha256()
        for name in sorted(params):
            digest.update(np.ascontiguousarray(params[name]).data)
        preflight.require_same(
            "weights",
            {"digest of Run.init_from": digest.hexdigest()},
            "give all processes the same weights",
        )
        for line in lines:
            say(line)
        return experiment.state_from(params)

    @contextlib.contextmanager
    def _during(self, cause: str) -> Iterator[None]:
        """Counts the time under `cause` in the ledger, and names the phase for the supervisor."""
        with self.ledger.during(cause), self.supervision.phase(cause):
            yield
