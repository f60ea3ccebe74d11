"""`nest-dist evaluate`: a checkpoint of a workdir, measured on its evaluation data."""

import csv
import json
import sys
from collections.abc import Mapping

from nest_dist.base import checks
from nest_dist.checkpointing import reader
from nest_dist.cluster import processes, supervisor
from nest_dist.commands import cli
from nest_dist.config import run_json
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import build
from nest_dist.experiment import run as runs
from nest_dist.train import evaluation

FORMATS = ("table", "json", "csv")
_SHOWN = {"eval/top_1": ("top-1", "{:.2%}"), "eval/top_5": ("top-5", "{:.2%}")}
_SHOWN |= {"eval/loss": ("loss", "{:.4f}"), "eval/examples": ("examples", "{:,.0f}")}


def run(options: cli.Options) -> None:
    """Prints the metrics of one checkpoint, from the primary process."""
    checks.one_of("--format", options.format, FORMATS)
    with supervisor.Supervisor() as supervision:
        supervision.start(
            options.coordinator, options.num_processes, options.process_id, options.wait_seconds
        )
        workdir = workdirs.for_reading(options.workdir)
        configured = runs.load([str(workdir / workdirs.CONFIGURATION)], options.gin_bindings or ())
        if configured.model.num_classes is None:
            # Those of the training data; the evaluation split may lack some.
            trained = json.loads((workdir / run_json.NAME).read_text())
            classes = run_json.select(trained, "model", "num_classes")
            configured = runs.with_counted_classes(configured, classes)
        experiment = build.build(configured, training=False)
        checkpoints = reader.Reader(workdir / workdirs.CHECKPOINTS)
        step, (class_names, state) = checkpoints.read(
            options.step,
            lambda step: (
                checkpoints.metadata(step)["class_names"],
                checkpoints.restore(step, experiment.state_shapes),
            ),
        )
        experiment = experiment.in_order(class_names)
        evaluation_step = experiment.compiled_evaluation_step()
        processes.barrier("compiled")
        batches = experiment.evaluation_batches()
        metrics = evaluation.evaluate(evaluation_step, state.evaluated, batches)
        if processes.is_primary() and metrics is not None:
            _show({"step": step, **metrics}, configured.evaluation.split, options.format)


def _show(measured: Mapping[str, float], split: str, form: str) -> None:
    if form == "json":
        print(json.dumps(measured))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([["split", *measured], [split, *measured.values()]])
    else:
        print(_table(measured, split))


def _table(measured: Mapping[str, float], split: str) -> str:
    lines = [f"step {measured['step']}, split {split}"]
    for name, value in measured.items():
        if name != "step":
            title, form = _SHOWN.get(name, (name.removeprefix("eval/"), "{:.4f}"))
            lines.append(f"  {title:<10}{form.format(value):>10}")
    return "\n".join(lines)
