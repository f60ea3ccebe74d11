"""Opens the data sets of a run, and checks that batch, mesh, model and data fit together."""

import dataclasses
from collections.abc import Sequence

import jax

from nest_dist.base import checks, failures
from nest_dist.data import batch, classes, pipeline
from nest_dist.data.sources import retries
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import open_evaluation, teachers
from nest_dist.experiment import run as runs
from nest_dist.model import fused, nest
from nest_dist.sharding import rules
from nest_dist.train import schedules
from nest_dist.train.objectives import class_weights, pretext


def build(
    run: runs.Run,
    devices: Sequence[jax.Device] | None = None,
    absent: batch.Source | None = None,
    training: bool = True,
    teacher: teachers.Load | None = None,
) -> experiments.Experiment:
    """The experiment of a run.

    Args:
        devices: of the mesh; by default all devices of all processes.
        absent: replaces both data sets on a machine that lacks them; nothing is opened then.
        training: whether the training split is opened; without, that of the evaluation stands in,
            and the lengths of schedule and run mean nothing.
        teacher: reads the weights of a teacher, where the objective has one.
    Raises:
        BadInput: if batch, mesh, model and data do not fit together.
    """
    if not training:
        # Lengths mean nothing then: a schedule with lengths in steps might not fit.
        objective = class_weights.left_out(run.step.objective)
        step = dataclasses.replace(run.step, schedule=schedules.Constant(), objective=objective)
        run = dataclasses.replace(run, step=step)
    run = runs.without_head(run)
    sharding = rules.ShardingContext(run.mesh.build(devices), run.rules)
    _require_fitting_mesh(run, sharding)
    _require_fitting_objective(run)
    if absent is not None:
        trained, evaluations = absent, open_evaluation.opened(run, absent, absent)
    else:
        split = retries.opened("the training split", run.data.source) if training else None
        evaluations = open_evaluation.opened(run, split)
        judged = [it.source for it in evaluations if it.judges_classes]
        trained = split if split is not None else [*judged, evaluations[0].source][0]
        run = runs.with_counted_classes(run, len(trained.class_names))
    taught = teachers.read(run, teacher, sharding) if training else None
    if taught is not None:
        _require_fitting_mesh_of(taught.weights.model, sharding, "Distillation.teacher")
    experiment = experiments.Experiment(run, sharding, trained, evaluations, taught)
    if training:  # first: the rows of a batch take memory
        pipeline.require_batch(trained, run.global_batch)
    if absent is None:
        _require_fitting_data(experiment, training)
        if devices is None:
            rows, labels = experiment.rows, experiment.labels
            if training:
                run.data.require_fit(trained, run.global_batch, rows, run.seed, labels)
            for it in evaluations:
                it.config.data.require_fit(it.source, run.global_batch, rows, labels=labels)
                if it.reference_data is not None and it.reference is not None:
                    it.reference_data.require_fit(it.reference, run.global_batch, rows)
    if not training:
        return experiment
    intervals = experiment.intervals
    retention, rule = run.checkpoints, run.early_stopping
    if retention.best:
        number = _measuring(run, "Retention.metric", retention.metric)
        retention.require_evaluated(intervals.save_every, intervals.evaluate_every[number])
    if rule:
        number = _measuring(run, "EarlyStopping.metric", rule.metric)
        rule.require_kept(retention, intervals.save_every, intervals.evaluate_every[number])
    return experiment


def _measuring(run: runs.Run, binding: str, metric: str) -> int:
    """The number of the evaluation that measures a metric."""
    num_classes, known = run.model.num_logits, []
    of_objective = run.step.objective.measures(num_classes)
    for number, evaluation in enumerate(run.evaluations):
        names = of_objective if evaluation.of_objective else ()
        measured = [*(f"{evaluation.prefix}{name}" for name in names), *evaluation.measured()]
        if metric in measured:
            return number
        known += [name for name in measured if not name.endswith("loss")]
    raise failures.BadInput(
        f"{binding} is {metric}, which is not measured with {num_classes} classes by "
        f"{type(run.step.objective).__name__}; set it to {' or '.join(known or measured)}."
    )


def batch_unit(run: runs.Run, sharding: rules.ShardingContext) -> int:
    """The smallest global batch that mesh, microbatches and mixing allow."""
    return sharding.shards("batch") * run.step.microbatches * run.step.inputs.mixing_group


def _require_fitting_mesh(run: runs.Run, sharding: rules.ShardingContext) -> None:
    """Refuses a mesh that cannot shard batch and model, or is not for `NesT.kernels`."""
    model, microbatches = run.model, run.step.microbatches
    factors = [f"the mesh's {sharding.shards('batch')} batch shards"]
    factors += [f"{microbatches} microbatches"] * (microbatches > 1)
    group = run.step.inputs.mixing_group
    names = "pairs" if group == 2 else "groups"
    factors += [f"{group} for the {names} of Inputs.mixing"] * (group > 1)
    checks.divides(
        "Run.global_batch",
        run.global_batch,
        batch_unit(run, sharding),
        " x ".join(factors),
        "set it to one of them, or change MeshShape",
    )
    _require_fitting_mesh_of(model, sharding, "NesT")
    fused.choose(model, sharding)


def _require_fitting_mesh_of(model: nest.NesT, sharding: rules.ShardingContext, whose: str) -> None:
    of_teacher = f" of {whose}" * (whose != "NesT")
    checks.divisor_of(
        "MeshShape.rows",
        sharding.shards("rows"),
        model.geometry().grids[0][0],
        f"the rows of blocks of the first level{of_teacher}",
        f"change {whose if of_teacher else 'NesT.image_size or NesT.block_side'}",
    )
    checks.divisor_of(
        "MeshShape.tensor",
        sharding.shards("heads"),
        model.heads,
        f"NesT.heads{of_teacher}",
        f"change {whose if of_teacher else 'NesT.heads'}",
    )


def _require_fitting_objective(run: runs.Run) -> None:
    """Refuses what an objective without labels cannot work with, by name."""
    step, objective = run.step, run.step.objective
    name, views = type(objective).__name__, getattr(objective, "views", 1)
    if run.data.views != views:
        raise failures.BadInput(
            f"TrainingData.views is {run.data.views}, {name} takes {views} of each picture; set "
            f"it to {views}."
        )
    if not isinstance(objective, pretext.Pretext):
        return
    for field in objective.spoilt_by:
        if getattr(step.inputs, field) is not None:
            raise failures.BadInput(
                f"Inputs.{field} is @{type(getattr(step.inputs, field)).__name__}(), which changes "
                f"images in a way that {name} cannot learn from; set it to None."
            )
    if objective.of_batch and step.microbatches > 1:
        raise failures.BadInput(
            f"Step.microbatches is {step.microbatches}, but {name} compares the examples of the "
            "whole batch; set it to 1, and use more devices if memory does not suffice."
        )
    if objective.of_batch and step.reproducible_reduction:
        raise failures.BadInput(
            f"Step.reproducible_reduction is True, but {name} compares the examples of the whole "
            "batch, which it would compute in shards; set it to False."
        )
    objective.require_fitting(run.model)


def _require_fitting_data(experiment: experiments.Experiment, training: bool) -> None:
    """Refuses open splits with other classes or another image shape than the model's."""
    run, names = experiment.run, experiment.class_names
    # A run that is only evaluated takes the classes of its checkpoint.
    if training and experiment.labelled and len(names) != run.model.num_classes:
        raise failures.BadInput(
            f"the data has {len(names)} classes ({classes.few(names)}), NesT.num_classes is "
            f"{run.model.num_classes}; set it to {len(names)}."
        )
    expected = batch.ImageSpec(*run.model.geometry().image_sides, run.model.num_channels)
    specs = {}
    for opened in experiment.evaluations:
        title = f"evaluation {opened.config.name!r}" if opened.config.name else "evaluation"
        specs[title] = opened.config.data.specs(opened.source)[-1]
        if opened.reference_data is not None and opened.reference is not None:
            specs["reference"] = opened.reference_data.specs(opened.reference)[-1]
        if training:
            opened.require_fit(run.model.num_hierarchies, run.model.num_classes)
    if training:
        spec = run.data.specs(experiment.training_source)[-1]
        specs["training"] = dataclasses.replace(spec, views=1)
    for name, spec in specs.items():
        if spec != expected:
            raise failures.BadInput(
                f"{name} images come out as {spec}, NesT takes {expected} (height, width, "
                "channels); change the transforms, NesT.image_size or NesT.num_channels."
            )
    channels = len(run.step.inputs.normalize.mean)
    if channels not in (1, run.model.num_channels):
        raise failures.BadInput(
            f"Normalize.mean has {channels} numbers, the images have {run.model.num_channels} "
            "channels; give one for each."
        )
