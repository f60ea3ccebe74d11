"""`nest-dist rehearse`: the training step of a run, compiled for TPUs or GPUs that are not here."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator

import jax

from nest_dist.base import checks, chips, failures, files
from nest_dist.commands import cli, train
from nest_dist.config import workdir
from nest_dist.experiment import audit, build, header, preflight
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import run as runs
from nest_dist.rehearsal import (
    absent_data,
    batch_size_search,
    compiled_step,
    feed,
    forecast,
    gpus,
    kernels,
    topology,
)

OUTPUT = "rehearsal"
REPORT = "report.json"


def run(options: cli.Options) -> None:
    """Prints a screen and writes OUTPUT/report.json."""
    # What is compiled for a TPU cannot be read from JAX's cache where there is none.
    jax.config.update("jax_enable_compilation_cache", False)
    configured, text = runs.parse(options.gin_file or (), options.gin_bindings or ())
    devices = topology.devices(options.topology, options.slices) if options.topology else None
    absent_gpus = devices is not None and gpus.knows(options.topology)
    if absent_gpus and options.keep:
        raise failures.BadInput(
            "--keep is given for GPUs that are not here, whose program differs from that for real "
            "ones; leave it out."
        )
    absent = absent_data.absent(configured, options.examples)
    read_teacher = functools.partial(train.teacher, may_be_untrained=True)
    experiment = build.build(configured, devices or jax.devices(), absent, teacher=read_teacher)
    table = audit.table(experiment.audit())
    if options.audit:
        print(table, end="")
        return
    checks.in_range("--slices", options.slices, 1)
    if options.core_images_per_second is not None:
        checks.in_range("--core_images_per_second", options.core_images_per_second, 1)
    policies = batch_size_search.policies(options.remat)
    limit = batch_size_search.require_limit(experiment) if options.fit else 0
    folder = workdir.for_writing(options.output or OUTPUT, "--output")
    compile_step = functools.partial(
        compiled_step.compiled,
        options=gpus.COMPILER_OPTIONS if absent_gpus else None,
    )
    with files.claimed(folder):
        report = {"topology": options.topology, "versions": preflight.versions()}
        if options.fit:
            trials = _fit(experiment, policies, limit, compile_step)
            report["fit"] = list(map(dataclasses.asdict, trials))
            for line in batch_size_search.table(trials):
                print(line)
        else:
            print("compiling ...", flush=True)
            compiled, grids, report["compile_seconds"] = compile_step(experiment)
            report |= forecast.of_step(experiment, compiled, grids)
            if options.without_kernels:
                report |= forecast.of_layers(experiment, report)
            if absent_gpus:
                report["gpu"]["difference"] = gpus.DIFFERENCE
            for line in (*forecast.screen(report), *_feed(experiment, report, options)):
                print(line)
            print(f"compiled in {report['compile_seconds']:.0f} s; all numbers: {folder / REPORT}")
            if options.keep:
                compiled_step.keep(folder, compiled, compiled_step.made_from(experiment))
                print(f"`nest-dist train --compiled={folder}` takes the compiled step from there")
        header.write_files(folder, experiment, text, table)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _feed(
    experiment: experiments.Experiment, report: forecast.Forecast, options: cli.Options
) -> Iterator[str]:
    """Lines on the hosts and the length of the run, which also go into the report."""
    if (speed := report.get("images_per_second_a_chip")) is None:
        return
    chip, run = chips.CHIPS[report["device_kind"]], experiment.run
    images = experiment.intervals.num_steps * run.global_batch
    needs = feed.of_run(chip, report["devices"], speed, options.core_images_per_second, images)
    report["feed"] = {**dataclasses.asdict(needs), "cores": needs.cores, "hours": needs.hours}
    yield from feed.screen(needs)


def _fit(
    experiment: experiments.Experiment,
    policies: tuple[str, ...],
    limit: float,
    compile_step: Callable[
        [experiments.Experiment], tuple[jax.stages.Compiled, kernels.Grids, float]
    ],
) -> list[batch_size_search.Trial]:
    """All trials, printed as they end."""

    def measure(changed: experiments.Experiment) -> forecast.Forecast | None:
        try:
            compiled, grids, _ = compile_step(changed)
            return forecast.of_step(changed, compiled, grids)
        except failures.BadInput:
            return None

    def tell(trial: batch_size_search.Trial) -> None:
        outcome = "fits" if trial.fits else "too much"
        images = f"{trial.images_a_device:g} images a device"
        print(f"remat {trial.remat}, {images}: {outcome}", flush=True)

    return batch_size_search.search(experiment, policies, limit, measure, tell)
