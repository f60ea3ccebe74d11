"""`nest-dist verify`: whether every checkpoint of a run is still what was saved."""

from nest_dist.base import failures
from nest_dist.checkpointing import reader
from nest_dist.commands import cli
from nest_dist.config import workdir as workdirs


def run(options: cli.Options) -> None:
    """Prints a line for each checkpoint."""
    if len(options.arguments) != 1:
        raise failures.BadInput(
            f"verify takes one WORKDIR, not {len(options.arguments)}; give the folder of a run."
        )
    workdir = workdirs.for_reading(options.arguments[0])
    entries = list(reader.Reader(workdir / workdirs.CHECKPOINTS).verified())
    for name, text, _ in entries:
        print(f"{name}: {text}")
    if corrupt := [name for name, _, is_corrupt in entries if is_corrupt]:
        raise failures.Failure(
            f"{len(corrupt)} of {len(entries)} checkpoints in {workdir} are corrupt: "
            f"{', '.join(corrupt)}; resuming the training quarantines those after the newest "
            "complete one."
        )
    if not entries:
        raise failures.BadInput(f"{workdir} has no checkpoint yet; train first.")
