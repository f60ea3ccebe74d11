"""`nest-dist verify`: whether every checkpoint of a run is still what was saved."""

from nest_dist.base import failures
from nest_dist.checkpointing import manager
from nest_dist.commands import cli, workdirs


def run(options: cli.Options) -> None:
    """Prints a line for each checkpoint.

    Raises:
        BadInput: if no folder of a run is given.
        Failure: if a checkpoint is damaged.
    """
    if len(options.arguments) != 1:
        raise failures.BadInput(
            f"verify takes one WORKDIR, not {len(options.arguments)}; give the folder of a run."
        )
    workdir = workdirs.for_reading(options.arguments[0])
    checkpoints = manager.Manager(workdir / workdirs.CHECKPOINTS, keep=None)
    damaged = []
    folders = checkpoints.folders()
    for name, step in folders.items():
        if step is None:
            print(f"{name}: set aside earlier; remove it when it is no longer needed")
        elif problem := checkpoints.problem(step):
            damaged.append(name)
            print(f"{name}: damaged: {problem}")
        else:
            print(f"{name}: whole")
    checkpoints.close()
    if damaged:
        raise failures.Failure(
            f"{len(damaged)} of {len(folders)} checkpoints in {workdir} damaged: "
            f"{', '.join(damaged)}; resuming the training sets aside those after the newest whole "
            "one."
        )
    if not folders:
        raise failures.BadInput(f"{workdir} has no checkpoint yet; train first.")
