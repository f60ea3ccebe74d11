"""`nest-dist train`: trains a run, or resumes it from its newest checkpoint."""

import contextlib
import functools
import sys
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from nest_dist.base import failures, tree_paths
from nest_dist.cluster import lease, library_output, supervisor
from nest_dist.commands import cli
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import build, preflight, teachers, training
from nest_dist.experiment import run as runs
from nest_dist.pretrained import load
from nest_dist.pretrained import stored as stored_weights
from nest_dist.rehearsal import compiled_step
from nest_dist.telemetry import goodput
from nest_dist.train.objectives import distillation


def run(options: cli.Options) -> None:
    """Trains to the last step, or until a stop is requested."""
    ledger = goodput.Ledger()
    with (
        contextlib.redirect_stdout(library_output.Lossy(sys.stdout)),
        supervisor.Supervisor() as supervision,
    ):
        with ledger.during("meet"):
            supervision.start(**cli.hosts(options))
        workdir = workdirs.for_writing(options.workdir)
        configured, config_gin = runs.parse(options.gin_file or (), options.gin_bindings or ())
        with library_output.diverted(workdir), lease.Lease(workdir) as held:
            preflight.same_program(configured, workdir)
            experiment = build.build(configured, teacher=teacher)
            preflight.same_data(experiment)
            compiled = None
            if options.compiled:
                folder = compiled_step.find(options.compiled, experiment)
                compiled = functools.partial(compiled_step.load, folder, experiment)
            training.Training(
                workdir=workdir,
                experiment=experiment,
                config_gin=config_gin,
                supervision=supervision,
                ledger=ledger,
                initial_params=initial_params,
                compiled=compiled,
                held=held,
            ).run(options.allow_config_change)


def initial_params(
    run: runs.Run, class_names: Sequence[str]
) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
    """The weights of `Run.init_from` adapted to the model, and lines that describe them."""
    assert run.init_from is not None
    stored = stored_weights.find(run.init_from)
    bias = run.step.objective.head_bias
    params, lines = load.adapt(stored, run.model, run.seed, class_names, run.new_head, bias)
    source = f"starting from {run.init_from}: {load.describe(stored.model)}"
    return params, [source, *lines]


def teacher(run: runs.Run, may_be_untrained: bool = False) -> teachers.TeacherWeights:
    """The weights of `Distillation.teacher`, with position embeddings for the images of the run.

    Args:
        run: with this objective.
        may_be_untrained: whether the name of a variant stands for initial values, as where a step
            is only compiled.
    Raises:
        BadInput: if there are no such weights, or they cannot take these images.
    """
    where = typing.cast(distillation.Distillation, run.step.objective).teacher
    untrained = stored_weights.is_variant(where)
    if untrained and not may_be_untrained:
        raise failures.BadInput(
            f"Distillation.teacher is {where}, the name of a variant, which has no trained "
            "weights; give a file, a workdir, or a repository of the Hugging Face Hub."
        )
    sides = run.model.geometry().image_sides
    fields = {"num_classes": run.model.num_logits} if untrained else {}
    try:
        loaded = load.load(where, **fields)
        if loaded.model.geometry().image_sides != sides:
            loaded = load.load(where, image_size=sides, **fields)
    except failures.BadInput as reason:
        raise failures.BadInput(f"Distillation.teacher: {failures.first_line(reason)}") from None
    return teachers.TeacherWeights(
        where,
        loaded.model,
        tree_paths.flatten(loaded.variables["params"]),
        loaded.preprocess.normalize,
        loaded.class_names,
    )
