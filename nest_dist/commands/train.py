"""`nest-dist train`: from a configuration to a trained model, or on from its last checkpoint."""

import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import time
import typing
from collections.abc import Iterator, Mapping

import jax
import numpy as np

import nest_dist
from nest_dist.checkpointing import manager
from nest_dist.commands import audit, cli, configuration, pretrained, resuming, wiring, workdirs
from nest_dist.data import batch
from nest_dist.parallel import hosts
from nest_dist.telemetry import report as reports
from nest_dist.train import evaluation, loop

GRID_IMAGES = 64
COMPILE_SKEW_SECONDS = 3600


def run(options: cli.Options) -> None:
    """Trains until the end, or until it is asked to stop."""
    workdir = workdirs.for_writing(options.workdir)
    configured = configuration.load(options.gin_file or (), options.gin_bindings or ())
    text = configuration.text()
    hosts.start(
        options.coordinator, options.num_processes, options.process_id, options.wait_seconds
    )
    with hosts.StopRequest() as stop, hosts.joint_end():
        hosts.agree("configuration", _digest(text), "start all processes with the same flags")
        _train(workdir, wiring.wire(configured), text, stop, options.allow_config_change)


def _train(
    workdir: pathlib.Path,
    wired: wiring.Wiring,
    text: str,
    stop: hosts.StopRequest,
    allow_change: bool,
) -> None:
    checkpoints = manager.Manager(workdir / workdirs.CHECKPOINTS, wired.run.keep)
    start = resuming.find(checkpoints, wired, text, allow_change)
    first_step = start.step
    cadence = wired.cadence
    report = reports.Report(
        workdir if hosts.lead() else None, first_step, cadence.num_steps, wired.steps_per_epoch
    )
    try:
        _introduce(report, workdir, wired, text, first_step)
        for note in start.notes:
            report.say(note)
        state = start.state or _first_state(wired, report)
        train_step, evaluation_step = _compile(wired, report)

        def evaluate(current: typing.Any) -> Mapping[str, float]:
            batches = wired.evaluation_batches()
            return evaluation.evaluate(evaluation_step, current.evaluated, batches)

        def save(step: int, current: typing.Any, measured: loop.Metrics) -> None:
            positions = _all_positions(batches.positions(), step)
            metadata = _metadata(wired, text) | {resuming.POSITIONS: positions}
            checkpoints.save(step, current, metadata, measured)
            report.flush()

        if first_step >= cadence.num_steps:
            report.say(f"the run is complete at step {first_step}; here is its evaluation again")
            report.say_metrics(first_step, evaluate(state))
            return
        batches = wired.training_batches(first_step, start.positions)
        parts = loop.Parts(
            step=train_step,
            batches=_show_first(batches, first_step, report),
            evaluate=evaluate,
            save=save,
            report=report.metrics,
            stop_reached=stop.reached,
            global_batch=wired.run.global_batch,
        )
        try:
            loop.run(state, first_step, cadence, parts)
        finally:
            batches.close()
        checkpoints.wait()
        report.say(f"done: {cadence.num_steps} steps; everything about the run is in {workdir}")
    finally:
        checkpoints.close()
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
    report.text("configuration", text, first_step)
    report.text("parameters", table, first_step)


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


def _compile(wired: wiring.Wiring, report: reports.Report) -> tuple[typing.Any, typing.Any]:
    """Both steps compiled, on all processes, before the first collective.

    The first collective of a group of processes allows them 30 s of difference only; compilation
    may differ by more.
    """
    started = time.perf_counter()
    report.say("compiling ...")
    training, evaluating = wired.batch_shapes()
    train_step = wired.train_step().lower(wired.shapes, training).compile()
    evaluation_step = wired.evaluation_step().lower(wired.shapes.evaluated, evaluating).compile()
    hosts.barrier("compiled", COMPILE_SKEW_SECONDS)
    report.say(f"compiled in {time.perf_counter() - started:.0f} s")
    return train_step, evaluation_step


def _show_first(
    batches: Iterator[wiring.DeviceBatch], first_step: int, report: reports.Report
) -> Iterator[wiring.DeviceBatch]:
    """Shows those images of the first batch that this process holds."""
    first = next(batches)
    parts = [np.asarray(shard.data) for shard in first["image"].addressable_shards]
    report.images("train/images", np.concatenate(parts)[:GRID_IMAGES], first_step + 1)
    return itertools.chain([first], batches)


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
