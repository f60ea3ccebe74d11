"""`nest-dist evaluate`: a checkpoint, or a file of weights, on the evaluation data of a workdir."""

import csv
import json
import sys
import typing
from collections.abc import Mapping, Sequence

from nest_dist.base import checks, failures
from nest_dist.checkpointing import reader
from nest_dist.cluster import processes, supervisor
from nest_dist.commands import cli
from nest_dist.config import run_json
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import build
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import run as runs
from nest_dist.pretrained import load
from nest_dist.pretrained import stored as stored_weights
from nest_dist.train import evaluation
from nest_dist.train import state as states
from nest_dist.train.objectives import pretext

# What the JSON says of the weights, their classes if they are known, and parameters.
_Measured = tuple[dict[str, typing.Any], Sequence[str], states.Params]

FORMATS = ("table", "json", "csv")
_SHOWN = {"eval/top_1": ("top-1", "{:.2%}"), "eval/top_5": ("top-5", "{:.2%}")}
_SHOWN |= {
    "eval/precision_at_1": ("prec. at 1", "{:.2%}"),
    "eval/mean_average_precision": ("mAP", "{:.2%}"),
}
_SHOWN |= {"eval/loss": ("loss", "{:.4f}"), "eval/examples": ("examples", "{:,.0f}")}


def run(options: cli.Options) -> None:
    """Prints the metrics of one set of weights, from the primary process."""
    checks.one_of("--format", options.format, FORMATS)
    with supervisor.Supervisor() as supervision:
        supervision.start(**cli.hosts(options))
        workdir = workdirs.for_reading(options.workdir)
        configured = runs.load([str(workdir / workdirs.CONFIGURATION)], options.gin_bindings or ())
        if configured.model.num_classes is None:
            # Those of the training data; the evaluation split may lack some.
            trained = json.loads((workdir / run_json.NAME).read_text())
            classes = run_json.select(trained, "model", "num_classes")
            configured = runs.with_counted_classes(configured, classes)
        experiment = build.build(configured, training=False)
        measured, class_names, params = (
            _of_file(options, configured, experiment)
            if options.checkpoint
            else _of_workdir(options, workdir, experiment)
        )
        experiment = experiment.in_order(class_names or experiment.class_names)
        evaluation_step = experiment.compiled_evaluation_step()
        processes.barrier("compiled")
        batches = experiment.evaluation_batches()
        metrics = evaluation.evaluate(evaluation_step, params, batches)
        if processes.is_primary() and metrics is not None:
            _show({**measured, **metrics}, configured.evaluation.split, options.format)


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


def _show(measured: Mapping[str, typing.Any], split: str, form: str) -> None:
    if form == "json":
        print(json.dumps(measured))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([["split", *measured], [split, *measured.values()]])
    else:
        print(_table(measured, split))


def _table(measured: Mapping[str, typing.Any], split: str) -> str:
    (kind, weights), *metrics = measured.items()
    lines = [f"{kind} {weights}, split {split}"]
    for name, value in metrics:
        title, form = _SHOWN.get(name, (name.removeprefix("eval/"), "{:.4f}"))
        lines.append(f"  {title:<10}{form.format(value):>10}")
    return "\n".join(lines)
