"""`nest-dist evaluate`: a checkpoint of a workdir, measured on its evaluation data."""

import json

from nest_dist.base import failures
from nest_dist.checkpointing import manager
from nest_dist.commands import cli, configuration, wiring, workdirs
from nest_dist.parallel import hosts, watch
from nest_dist.train import evaluation


def run(options: cli.Options) -> None:
    """Prints the metrics of one checkpoint as a JSON object, from the lead process."""
    workdir = workdirs.for_reading(options.workdir)
    with watch.Watch() as watching:
        configured = configuration.load(
            [str(workdir / workdirs.CONFIGURATION)], options.gin_bindings or ()
        )
        hosts.start(
            options.coordinator, options.num_processes, options.process_id, options.wait_seconds
        )
        watching.connect()
        wired = wiring.wire(configured)
        checkpoints = manager.Manager(workdir / workdirs.CHECKPOINTS, keep=None)
        step = _chosen(options.step, checkpoints.steps(), str(workdir))
        checkpoints.require_whole(step)
        params = checkpoints.restore(step, wired.shapes).evaluated
        _, shapes = wired.batch_shapes()
        evaluation_step = wired.evaluation_step().lower(wired.shapes.evaluated, shapes).compile()
        hosts.barrier("compiled")
        batches = wired.evaluation_batches()
        metrics = evaluation.evaluate(evaluation_step, params, batches)
        if hosts.lead() and metrics is not None:
            print(json.dumps({"step": step, **metrics}))
        checkpoints.close()


def _chosen(step: int | None, steps: list[int], workdir: str) -> int:
    if not steps:
        raise failures.BadInput(
            f"--workdir is {workdir}, which has no checkpoint yet; train first."
        )
    if step is None:
        return steps[-1]
    if step not in steps:
        raise failures.BadInput(
            f"--step is {step}, of which there is no checkpoint; there are "
            f"{', '.join(map(str, steps))}."
        )
    return step
