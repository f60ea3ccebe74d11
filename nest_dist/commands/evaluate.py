"""`nest-dist evaluate`: weights from a run or from anywhere, on the data of a run or on any."""

import contextlib
import csv
import json
import sys
import typing
from collections.abc import Mapping, Sequence

from nest_dist.base import checks, failures, files
from nest_dist.checkpointing import reader
from nest_dist.cluster import library_output, processes, supervisor
from nest_dist.commands import cli, predict
from nest_dist.config import run_json
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import build, confusions, evaluations
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import run as runs
from nest_dist.pretrained import load, without_run
from nest_dist.pretrained import stored as stored_weights
from nest_dist.train import state as states
from nest_dist.train.evaluators import catalog, confusion
from nest_dist.train.objectives import pretext

# What the JSON says of the weights, their classes if they are known, and parameters.
_Measured = tuple[dict[str, typing.Any], Sequence[str], states.Params]

FORMATS = ("table", "json", "csv")
_SHOWN = {"loss": ("loss", "{:.4f}"), "examples": ("examples", "{:,.0f}")}
_SHOWN |= {
    "precision_at_1": ("prec. at 1", "{:.2%}"),
    "mean_average_precision": ("mAP", "{:.2%}"),
}
LISTED = 10  # classes and pairs below a table


def run(options: cli.Options) -> None:
    """Prints the metrics of one set of weights, from the primary process."""
    checks.one_of("--format", options.format, FORMATS)
    bindings = [*_of_measures(options.measures), *(options.gin_bindings or ())]
    if options.output is not None:
        files.output_folder(options.output)  # refused before anything is measured
    with contextlib.ExitStack() as opened:
        opened.enter_context(supervisor.Supervisor()).start(**cli.hosts(options))
        opened.enter_context(library_output.diverted(options.workdir))
        elsewhere = options.workdir is None and options.checkpoint is not None
        weighed = _without_run if elsewhere else _with_run
        experiment, (measured, class_names, params) = weighed(options, bindings)
        if experiment.judges_classes:
            experiment = experiment.in_order(class_names or experiment.class_names)
        model = experiment.run.model
        for each in experiment.evaluations:
            each.require_fit(model.num_hierarchies, model.num_classes)
        steps = [
            experiment.compiled_evaluation_step(number)
            for number in range(len(experiment.evaluations))
        ]
        processes.barrier("compiled")
        outcomes = [
            outcome
            for number, step in enumerate(steps)
            if (outcome := evaluations.make(experiment, number, step, params)) is not None
        ]
        if processes.is_primary() and outcomes:
            _show(measured, experiment, outcomes, options)


def _of_measures(names: str | None) -> list[str]:
    """The binding that --measures stands for."""
    if names is None:
        return []
    chosen = names.split(",")
    for name in chosen:
        checks.one_of("a member of --measures", name, catalog.MEASURES)
    made = "".join(f"@{catalog.MEASURES[name].__name__}(), " for name in chosen)
    return [f"Evaluation.measures = ({made})"]


def _with_run(
    options: cli.Options, bindings: Sequence[str]
) -> tuple[experiments.Experiment, _Measured]:
    workdir = workdirs.for_reading(options.workdir)
    if options.class_names is not None:
        raise failures.BadInput(
            f"--class_names is {options.class_names}, but the run of --workdir names its classes; "
            "leave it out."
        )
    gin_files = [str(workdir / workdirs.CONFIGURATION), *(options.gin_file or ())]
    configured = runs.load(gin_files, bindings)
    if configured.model.num_classes is None:
        # Those of the training data; the evaluation split may lack some.
        trained = run_json.read(workdir / run_json.NAME)
        classes = run_json.select(trained, "model", "num_classes")
        configured = runs.with_counted_classes(configured, classes)
    experiment = build.build(configured, training=False)
    if options.checkpoint:
        return experiment, _of_file(options, configured, experiment)
    return experiment, _of_workdir(options, workdir, experiment)


def _of_workdir(
    options: cli.Options, workdir: workdirs.Folder, experiment: experiments.Experiment
) -> _Measured:
    checkpoints = reader.Reader(workdir / workdirs.CHECKPOINTS)
    step, (class_names, state) = checkpoints.read(
        options.step,
        lambda step: (
            checkpoints.metadata(step)["class_names"],
            checkpoints.restore(step, experiment.state_shapes),
        ),
    )
    return {"step": step}, class_names, state.evaluated


def _of_file(
    options: cli.Options, configured: runs.Run, experiment: experiments.Experiment
) -> _Measured:
    """Weights from anywhere, with the image and the classes of the run."""
    if options.step is not None:
        raise failures.BadInput(
            "--step and --checkpoint are both given; give one, or WORKDIR/checkpoints/STEP."
        )
    objective = experiment.run.step.objective
    if isinstance(objective, pretext.Pretext):
        raise failures.BadInput(
            f"--checkpoint is {options.checkpoint}, but the run of this workdir is evaluated by "
            f"{type(objective).__name__}, whose own parameters no weights hold; give --step."
        )
    stored_weights.require_trained(options.checkpoint)
    stored = stored_weights.find(options.checkpoint)
    if stored.model.num_classes != configured.model.num_classes:
        raise failures.BadInput(
            f"{options.checkpoint} has {stored.model.num_classes} classes, the run of this workdir "
            f"{configured.model.num_classes}; give weights of its classes."
        )
    params, _ = load.adapt(stored, configured.model)
    measured = {"checkpoint": options.checkpoint}
    return measured, stored.class_names, experiment.state_from(params).evaluated


def _without_run(
    options: cli.Options, bindings: Sequence[str]
) -> tuple[experiments.Experiment, _Measured]:
    """Weights from anywhere, as they are, on the data of --gin_file."""
    stored_weights.require_trained(options.checkpoint)
    stored = stored_weights.find(options.checkpoint, options.step)
    configured = without_run.configured(stored, options.gin_file or (), bindings)
    experiment = build.build(configured, training=False)
    names: Sequence[str] = stored.class_names
    if options.class_names is not None:
        names = predict.names_in(options.class_names, stored.model.num_logits)
    count = len(names or experiment.class_names)
    if experiment.judges_classes and count != stored.model.num_classes:
        raise failures.BadInput(
            f"{options.checkpoint} has {stored.model.num_classes} classes without names, the data "
            f"has {count}; give the names of its classes, in their order, by --class_names."
        )
    params, _ = load.adapt(stored, stored.model)
    measured = {"checkpoint": options.checkpoint}
    return experiment, (measured, names, experiment.state_from(params).evaluated)


def _show(
    measured: Mapping[str, typing.Any],
    experiment: experiments.Experiment,
    outcomes: Sequence[evaluations.Outcome],
    options: cli.Options,
) -> None:
    opened = experiment.evaluations
    if options.output is not None:
        folder = files.output_folder(options.output)
        with files.claimed(folder):
            for each, outcome in zip(opened, outcomes, strict=True):
                if outcome.confused is not None:
                    tables = confusions.tables(outcome.confused, each.class_names)
                    drawn = confusions.drawn(each, outcome.confused)
                    confusions.write(folder / each.config.name, tables, drawn)
    metrics = {name: value for outcome in outcomes for name, value in outcome.metrics.items()}
    if options.format == "json":
        print(json.dumps({**measured, **metrics}))
    elif options.format == "csv":
        row = {**measured, **metrics}
        writer = csv.writer(sys.stdout, lineterminator="\n")
        splits = "+".join(each.config.split for each in opened)
        writer.writerows([["split", *row], [splits, *row.values()]])
    else:
        ((kind, weights),) = measured.items()
        for each, outcome in zip(opened, outcomes, strict=True):
            name = f", evaluation {each.config.name}" if each.config.name else ""
            print(f"{kind} {weights}, split {each.config.split}{name}")
            print(_table(outcome.metrics, each.config.prefix))
            if outcome.confused is not None:
                print(confusion.table(outcome.confused, each.class_names, LISTED))
    for note in (note for outcome in outcomes for note in outcome.notes):
        print(note, file=sys.stderr)


def _table(metrics: Mapping[str, float], prefix: str) -> str:
    names = {name: name.removeprefix(prefix) for name in metrics}
    rows = [(*_SHOWN.get(short, _accuracy(short)), metrics[name]) for name, short in names.items()]
    width = max(10, *(len(title) + 1 for title, _, _ in rows))
    return "\n".join(f"  {title:<{width}}{form.format(value):>10}" for title, form, value in rows)


def _accuracy(name: str) -> tuple[str, str]:
    if name.endswith("examples"):
        return name, "{:,.0f}"
    return name.replace("top_", "top-") if name.startswith("top_") else name, "{:.2%}"
