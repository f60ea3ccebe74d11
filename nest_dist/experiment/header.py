"""The header of a run: the lines that it prints and the files that it writes before a step."""

import json
import pathlib
import re
import typing
from collections.abc import Iterator

import jax

import nest_dist
from nest_dist.base import files
from nest_dist.cluster import processes
from nest_dist.config import run_json
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import audit, resume
from nest_dist.experiment import experiment as experiments
from nest_dist.telemetry import report as reports
from nest_dist.telemetry import staging


def write_header(
    report: reports.Report,
    workdir: workdirs.Folder,
    staging_folder: staging.StagingFolder,
    experiment: experiments.Experiment,
    config_gin: str,
    start: resume.Start,
) -> None:
    """Prints the summary of a run and records its configuration."""
    # The audit may refuse the mesh: before the first line.
    table = audit.table(experiment.audit())
    for line in _summary(workdir, experiment, start):
        report.say(line)
    if processes.is_primary():
        write_files(staging_folder.folder, experiment, config_gin, table)
        staging_folder.copy()
    report.text("configuration", config_gin, start.step + 1)
    report.text("parameters", table, start.step + 1)
    report.hparams(values(experiment))


def values(experiment: experiments.Experiment) -> dict[str, bool | float | str]:
    """The values of a run by their names in gin; what is no number, as text."""
    settings = run_json.flatten(experiment.document).values()
    return {
        it.binding: it.value if isinstance(it.value, (int, float)) else it.text for it in settings
    }


def write_files(
    folder: pathlib.Path, experiment: experiments.Experiment, config_gin: str, table: str
) -> None:
    """Writes the run as gin and as JSON, and the audit of its parameters."""
    document = {**experiment.document, "class_names": experiment.class_names}
    if experiment.teacher is not None:
        document["teacher"] = experiment.teacher.weights.digest
    files.write_text_durably(folder / workdirs.CONFIGURATION, config_gin)
    files.write_text_durably(folder / run_json.NAME, json.dumps(document, indent=1) + "\n")
    files.write_text_durably(folder / workdirs.PARAMETERS, table)


def with_weights(config_gin: str, weights: tuple[typing.Any, ...] | None) -> str:
    """The configuration as gin, with the weights of a mixture that the run goes on with."""
    bindings = re.findall(r"^((?:\S+/)?Mixture\.weights) = ", config_gin, flags=re.MULTILINE)
    if weights is None or not bindings:
        return config_gin
    return config_gin + "".join(f"\n{binding} = {weights!r}\n" for binding in bindings)


def _summary(
    workdir: workdirs.Folder, experiment: experiments.Experiment, start: resume.Start
) -> Iterator[str]:
    run, state = experiment.run, experiment.state_shapes
    mesh = " x ".join(f"{name}={size}" for name, size in experiment.sharding.mesh.shape.items())
    yield (
        f"nest_dist {nest_dist.__version__}: {jax.device_count()} {jax.devices()[0].device_kind} "
        f"devices in {jax.process_count()} processes, mesh {mesh}"
    )
    yield (
        f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters, with the "
        f"optimizer's state {audit.device_bytes(state) / 1e6:,.1f} MB a device; all are listed in "
        f"{workdir / workdirs.PARAMETERS}"
    )
    yield str(experiment.kernels)
    yield (
        f"{len(experiment.training_source):,} training and "
        f"{len(experiment.evaluation_source):,} evaluation examples of "
        f"{len(experiment.class_names)} classes"
    )
    if experiment.teacher is not None:
        yield f"the teacher is {experiment.teacher.weights}"
    for opened in experiment.evaluations[1:]:
        yield f"evaluation {opened.config.name!r}: {len(opened.source):,} examples"
    num_steps, epochs = experiment.intervals.num_steps, run.num_epochs
    if isinstance(epochs, str):
        epochs = num_steps / experiment.steps_per_epoch
    yield f"{num_steps:,} steps of {run.global_batch} examples, {epochs:.6g} epochs"
    if start.step:
        yield f"resuming after step {start.step}, from {workdir / workdirs.CHECKPOINTS}"
    yield from start.notes
