"""`nest-dist train`: from a configuration to a trained model, or on from its last checkpoint."""

import contextlib
import functools
import hashlib
import itertools
import json
import typing
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from nest_dist.checkpointing import manager
from nest_dist.commands import (
    artifact,
    cli,
    compilation,
    configuration,
    gallery,
    introduction,
    preflight,
    pretrained,
    resuming,
    wiring,
    workdirs,
)
from nest_dist.data import batch
from nest_dist.model import flops
from nest_dist.parallel import hosts, watch
from nest_dist.telemetry import desk, goodput, profile
from nest_dist.telemetry import report as reports
from nest_dist.train import evaluation, loop


def run(options: cli.Options) -> None:
    """Trains until the end, or until it is asked to stop."""
    ledger = goodput.Ledger()
    with watch.Watch() as watching:
        workdir = workdirs.for_writing(options.workdir)
        configured = configuration.load(options.gin_file or (), options.gin_bindings or ())
        text = configuration.text()
        hosts.start(
            options.coordinator, options.num_processes, options.process_id, options.wait_seconds
        )
        watching.connect(configured.stuck_seconds)
        preflight.same_program(text, workdir)
        wired = wiring.wire(configured)
        preflight.same_data(wired)
        kept = artifact.find(options.compiled, wired, text) if options.compiled else None
        training = _Training(workdir, wired, text, watching, ledger, kept)
        training.run(options.allow_config_change)


class _Training:
    """A run in its folder: what is open while it lasts, put together for the loop."""

    def __init__(
        self,
        workdir: workdirs.Folder,
        wired: wiring.Wiring,
        text: str,
        watching: watch.Watch,
        ledger: goodput.Ledger,
        kept: workdirs.Folder | None,
    ) -> None:
        self._kept = kept
        self._workdir = workdir
        self._wired = wired
        self._text = text
        self._watch = watching
        self._ledger = ledger
        # Before anything takes long: it may refuse the mesh.
        self._train_step = wired.train_step()
        self._checkpoints = manager.Manager(workdir / workdirs.CHECKPOINTS, wired.run.keep)

    def run(self, allow_change: bool) -> None:
        """Trains from where the folder is to the end."""
        wired, lead = self._wired, hosts.lead()
        bring, requests = (workdirs.GOODPUT, desk.METRICS), (profile.REQUEST,)
        try:
            self._checkpoints.require_room(wired.shapes)
            with self._during("restore"):
                start = resuming.find(self._checkpoints, wired, self._text, allow_change)
            with desk.Desk(self._workdir, bring if lead else (), requests if lead else ()) as here:
                self._desk = here
                self._ledger.resume(here.folder / workdirs.GOODPUT if lead else None, start.step)
                self._report = reports.Report(
                    here.folder if lead else None,
                    start.step,
                    wired.cadence.num_steps,
                    wired.steps_per_epoch,
                    flops.training_flops(wired.run.model),
                )
                try:
                    self._train(start)
                finally:
                    self._ledger.write()
                    self._report.close()
        finally:
            self._checkpoints.close()

    def _train(self, start: resuming.Start) -> None:
        wired, report, cadence = self._wired, self._report, self._wired.cadence
        introduction.introduce(report, self._workdir, self._desk, wired, self._text, start)
        state = start.state or _first_state(wired, report)
        with self._during("compile"), compilation.kept(self._workdir, report.say):
            training, evaluating = wired.batch_shapes()
            if self._kept:
                self._step = artifact.load(self._kept, wired)
            else:
                self._step = self._train_step.lower(wired.shapes, training).compile()
            counting = wired.evaluation_step().lower(wired.shapes.evaluated, evaluating)
            self._evaluation_step = counting.compile()
            self._shown = gallery.Gallery(wired, report)
        with self._during("compile"):
            # Now, and not while the first checkpoint waits.
            self._checkpoints.prepare(state)
        self._watch.begin()
        if start.step >= cadence.num_steps:
            report.say(f"the run is complete at step {start.step}; here is its evaluation again")
            report.say_metrics(start.step, self._evaluate(state, show=False) or {})
            return
        if start.step and not start.evaluated and cadence.due(start.step, cadence.evaluate_every):
            report.metrics(start.step, self._evaluate(state) or {})
        self._train_on(start, state)
        with self._during("save"):
            self._checkpoints.wait()
        report.summary(cadence.num_steps, wired.run.global_batch, self._ledger)
        report.say(f"everything about the run is in {self._workdir}")

    def _train_on(self, start: resuming.Start, state: typing.Any) -> None:
        """To the end, going back to a checkpoint where the configuration wants it."""
        policy, skip = self._wired.run.not_finite, 0
        for rewinds in itertools.count(1):
            try:
                self._loop(start, state, skip)
                return
            except loop.NotFinite as failure:
                if policy.policy != "rewind" or rewinds > policy.limit:
                    raise
                with self._during("restore"):
                    start = resuming.back(self._checkpoints, self._wired)
                    state = start.state or _first_state(self._wired, self._report)
                skip = failure.step - start.step
                self._ledger.rewind(start.step)
                self._report.rewind(start.step)
                self._report.say(
                    f"{failure} Going back to step {start.step} and leaving out the data of the "
                    f"{skip} steps from there ({rewinds} of {policy.limit} times)."
                )

    def _loop(self, start: resuming.Start, state: typing.Any, skip: int) -> None:
        wired, run, cadence = self._wired, self._wired.run, self._wired.cadence
        batches = resuming.batches(wired, start, skip, lambda: self._watch.stopping)
        planned = run.profile_first_step

        def traced(text: str) -> None:
            self._report.say(text)
            self._desk.copy()

        profiler = profile.Profiler(
            first_step=planned if planned and planned > start.step else None,
            num_steps=run.profile_num_steps,
            workdir=self._desk.folder,
            look_every=cadence.log_every,
            done=traced,
        )

        def record(step: int, metrics: loop.StepMetrics) -> None:
            self._report.metrics(step, metrics)
            self._ledger.write(at_once=False)

        def save(step: int, current: typing.Any, measured: loop.Metrics, given: int) -> None:
            self._ledger.saved(step)
            self._report.metrics(step, self._ledger.metrics())
            metadata = {
                **_metadata(wired, self._text),
                resuming.POSITIONS: _all_positions(batches.positions(given), step),
                resuming.LEFT_OUT: start.left_out + skip,
            }
            self._checkpoints.save(step, current, metadata, measured)
            self._report.flush()
            self._desk.copy()

        def stop_reached() -> bool:
            self._checkpoints.raise_failure()
            return self._watch.tick()

        parts = loop.Parts(
            step=self._step,
            batches=self._shown.training(batches, start.step),
            steps_done=lambda current: int(current.step),
            evaluate=self._evaluate,
            save=save,
            report=record,
            stop_reached=stop_reached,
            global_batch=run.global_batch,
            most_skipped=run.not_finite.limit if run.not_finite.policy == "skip" else 0,
            before_step=profiler.before_step,
            during=self._during,
        )
        try:
            with profiler, self._during("step"):
                loop.run(state, start.step, cadence, parts)
        finally:
            batches.close()

    def _evaluate(self, state: typing.Any, show: bool = True) -> Mapping[str, float] | None:
        page = functools.partial(self._shown.evaluation, int(state.step)) if show else None
        batches = self._wired.evaluation_batches(lambda: self._watch.stopping)
        try:
            return evaluation.evaluate(
                self._evaluation_step, state.evaluated, batches, page, self._watch.tick
            )
        finally:
            batches.close()

    @contextlib.contextmanager
    def _during(self, cause: str) -> Iterator[None]:
        """Whose time it is, for the ledger, and what goes on, for the watch."""
        with self._ledger.during(cause), self._watch.phase(cause):
            yield


def _first_state(wired: wiring.Wiring, report: reports.Report) -> typing.Any:
    """First values, or the weights of `Run.init_from` made to fit."""
    run = wired.run
    if run.init_from is None:
        return wired.init_state()
    found = pretrained.find(run.init_from)
    params, outcome = pretrained.adapt(found, run.model, run.seed)
    digest = hashlib.sha256()
    for name in sorted(params):
        digest.update(np.ascontiguousarray(params[name]).data)
    hosts.agree("Run.init_from", digest.hexdigest(), "give all processes the same weights")
    report.say(f"starting from {run.init_from}: {pretrained.describe(found.model)}")
    for line in outcome.lines():
        report.say(line)
    return wired.state_from(params)


def _metadata(wired: wiring.Wiring, text: str) -> manager.Metadata:
    return {
        "seed": wired.run.seed,
        "global_batch": wired.run.global_batch,
        "data_fingerprint": wired.training_source.fingerprint,
        "configuration": text,
        "class_names": list(wired.training_source.class_names),
        "devices": [jax.device_count(), jax.devices()[0].device_kind],
        "mesh": dict(wired.layout.mesh.shape),
        "processes": jax.process_count(),
        "versions": preflight.versions(),
    }


def _all_positions(own: batch.Positions, step: int) -> batch.Positions:
    """Those of all processes; none, without asking, where the data has an index."""
    if not own:
        return {}
    texts = hosts.gather(f"data positions after step {step}", json.dumps(own))
    return {shard: place for text in texts for shard, place in json.loads(text).items()}
