"""`nest-dist evaluate`: a checkpoint of a workdir, measured on its evaluation data."""

import json

from nest_dist.checkpointing import reader
from nest_dist.cluster import processes, supervisor
from nest_dist.commands import cli
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import build
from nest_dist.experiment import run as runs
from nest_dist.train import evaluation


def run(options: cli.Options) -> None:
    """Prints the metrics of one checkpoint as a JSON object, from the primary process."""
    with supervisor.Supervisor() as supervision:
        supervision.start(**cli.hosts(options))
        workdir = workdirs.for_reading(options.workdir)
        configured = runs.load([str(workdir / workdirs.CONFIGURATION)], options.gin_bindings or ())
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
            print(json.dumps({"step": step, **metrics}))
