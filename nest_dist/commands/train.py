"""`nest-dist train`: from a configuration to a trained model, or on from its last checkpoint."""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import typing
from collections.abc import Mapping

import jax
import numpy as np

import nest_dist
from nest_dist.checkpointing import manager
from nest_dist.commands import (
    audit,
    cli,
    compilation,
    configuration,
    gallery,
    pretrained,
    recorded,
    resuming,
    wiring,
    workdirs,
)
from nest_dist.data import batch
from nest_dist.model import flops
from nest_dist.parallel import hosts
from nest_dist.telemetry import goodput, profile
from nest_dist.telemetry import report as reports
from nest_dist.train import evaluation, loop


def run(options: cli.Options) -> None:
    """Trains until the end, or until it is asked to stop."""
    ledger = goodput.Ledger()
    workdir = workdirs.for_writing(options.workdir)
    configured = configuration.load(options.gin_file or (), options.gin_bindings or ())
    text = configuration.text()
    hosts.start(
        options.coordinator, options.num_processes, options.process_id, options.wait_seconds
    )
    with hosts.StopRequest() as stop, hosts.joint_end():
        hosts.agree("configuration", _digest(text), "start all processes with the same flags")
        _train(workdir, wiring.wire(configured), text, stop, options.allow_config_change, ledger)


def _train(
    workdir: pathlib.Path,
    wired: wiring.Wiring,
    text: str,
    stop: hosts.StopRequest,
    allow_change: bool,
    ledger: goodput.Ledger,
) -> None:
    checkpoints = manager.Manager(workdir / workdirs.CHECKPOINTS, wired.run.keep)
    with ledger.during("restore"):
        start = resuming.find(checkpoints, wired, text, allow_change)
    first_step = start.step
    cadence = wired.cadence
    ledger.resume(workdir / workdirs.GOODPUT if hosts.lead() else None, first_step)
    report = reports.Report(
        workdir if hosts.lead() else None,
        first_step,
        cadence.num_steps,
        wired.steps_per_epoch,
        flops.training_flops(wired.run.model),
    )
    try:
        _introduce(report, workdir, wired, text, first_step)
        for note in start.notes:
            report.say(note)
        state = start.state or _first_state(wired, report)
        with ledger.during("compile"), compilation.kept(workdir, report.say):
            training, evaluating = wired.batch_shapes()
            train_step = wired.train_step().lower(wired.shapes, training).compile()
            evaluation_step = wired.evaluation_step().lower(wired.shapes.evaluated, evaluating)
            evaluation_step = evaluation_step.compile()
            shown = gallery.Gallery(wired, report)

        def evaluate(current: typing.Any, show: bool = True) -> Mapping[str, float]:
            page = functools.partial(shown.evaluation, int(current.step)) if show else None
            batches = wired.evaluation_batches()
            return evaluation.evaluate(evaluation_step, current.evaluated, batches, page)

        def record(step: int, metrics: loop.StepMetrics) -> None:
            report.metrics(step, metrics)
            ledger.write(at_once=False)

        def save(step: int, current: typing.Any, measured: loop.Metrics) -> None:
            ledger.saved(step)
            report.metrics(step, ledger.metrics())
            positions = _all_positions(batches.positions(), step)
            metadata = _metadata(wired, text) | {resuming.POSITIONS: positions}
            checkpoints.save(step, current, metadata, measured)
            report.flush()

        if first_step >= cadence.num_steps:
            report.say(f"the run is complete at step {first_step}; here is its evaluation again")
            report.say_metrics(first_step, evaluate(state, show=False))
            return
        batches = wired.training_batches(first_step, start.positions)
        planned = wired.run.profile_first_step
        profiler = profile.Profiler(
            first_step=planned if planned and planned > first_step else None,
            num_steps=wired.run.profile_num_steps,
            workdir=workdir,
            look_every=cadence.log_every,
            done=report.say,
        )
        parts = loop.Parts(
            step=train_step,
            batches=shown.training(batches, first_step),
            evaluate=evaluate,
            save=save,
            report=record,
            stop_reached=stop.reached,
            global_batch=wired.run.global_batch,
            before_step=profiler.before_step,
            during=ledger.during,
        )
        try:
            with profiler, ledger.during("step"):
                loop.run(state, first_step, cadence, parts)
        finally:
            batches.close()
        with ledger.during("save"):
            checkpoints.wait()
        report.summary(cadence.num_steps, wired.run.global_batch, ledger)
    finally:
        checkpoints.close()
        ledger.write()
        report.close()


def _introduce(
    report: reports.Report,
    workdir: pathlib.Path,
    wired: wiring.Wiring,
    text: str,
    first_step: int,
) -> None:
    """Says what is about to happen and records the operative configuration."""
    run, cadence = wired.run, wired.cadence
    mesh = " x ".join(f"{name}={size}" for name, size in wired.layout.mesh.shape.items())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(wired.shapes.params))
    table = audit.table(wired.audit())
    report.say(
        f"nest_dist {nest_dist.__version__}: {jax.device_count()} {jax.devices()[0].device_kind} "
        f"devices in {jax.process_count()} processes, mesh {mesh}"
    )
    report.say(
        f"{parameters:,} parameters, with the optimizer's state "
        f"{audit.device_bytes(wired.shapes) / 1e6:,.1f} MB a device; each is listed in "
        f"{workdir / workdirs.PARAMETERS}"
    )
    report.say(
        f"{len(wired.training_source):,} training and "
        f"{len(wired.evaluation_source):,} evaluation examples of "
        f"{len(wired.training_source.class_names)} classes"
    )
    report.say(
        f"{cadence.num_steps:,} steps of {run.global_batch} examples, {run.num_epochs:g} epochs"
    )
    if first_step:
        report.say(f"resuming after step {first_step}, from {workdir / workdirs.CHECKPOINTS}")
    if hosts.lead():
        (workdir / workdirs.CONFIGURATION).write_text(text, encoding="utf-8")
        (workdir / workdirs.PARAMETERS).write_text(table, encoding="utf-8")
    report.text("configuration", text, first_step + 1)
    report.text("parameters", table, first_step + 1)
    report.hparams(recorded.Recorded(text).plain())


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
    packages = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint")
    return {
        "seed": wired.run.seed,
        "global_batch": wired.run.global_batch,
        "data_fingerprint": wired.training_source.fingerprint,
        "configuration": text,
        "class_names": list(wired.training_source.class_names),
        "devices": [jax.device_count(), jax.devices()[0].device_kind],
        "mesh": dict(wired.layout.mesh.shape),
        "processes": jax.process_count(),
        "versions": {
            "nest_dist": nest_dist.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def _all_positions(own: batch.Positions, step: int) -> batch.Positions:
    """Those of all processes; none, without asking, where the data has an index."""
    if not own:
        return {}
    texts = hosts.gather(f"data positions after step {step}", json.dumps(own))
    return {shard: place for text in texts for shard, place in json.loads(text).items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
