"""Going on from the newest whole checkpoint of a workdir."""

import dataclasses
import typing
from collections.abc import Callable

from nest_dist.base import failures
from nest_dist.checkpointing import manager
from nest_dist.commands import changes, wiring
from nest_dist.data import assembly, batch

# Where the metadata of a checkpoint holds the positions of a stream's virtual shards.
POSITIONS = "data_positions"
# And how many batches were left out.
LEFT_OUT = "batches_left_out"


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        step: steps already done.
        state: after them; None if the run begins.
        positions: of the data's virtual shards; empty where the data has an index.
        left_out: batches of the sequence that no step was made with.
        evaluated: whether there is an evaluation of this step.
        notes: what happened to checkpoints and configuration, line by line.
    """

    step: int = 0
    state: typing.Any = None
    positions: batch.Positions = dataclasses.field(default_factory=dict)
    left_out: int = 0
    evaluated: bool = False
    notes: tuple[str, ...] = ()


def find(
    checkpoints: manager.Manager, wired: wiring.Wiring, text: str, allow_change: bool
) -> Start:
    """Restores the newest checkpoint that is whole, decided by all processes together.

    Args:
        checkpoints: of the workdir.
        wired: the run.
        text: its operative configuration.
        allow_change: whether to go on even if the checkpoint was made with other data.
    Raises:
        BadInput: if the checkpoint belongs to another run.
    """

    def compare(metadata: manager.Metadata) -> list[changes.Change]:
        changed = changes.between(metadata["configuration"], text)
        changes.require_same_run(changed, allow_change)
        _require_same_data(metadata, wired, allow_change)
        return changed

    return _newest(checkpoints, wired, compare)


def back(checkpoints: manager.Manager, wired: wiring.Wiring) -> Start:
    """Restores the newest checkpoint of a run that is under way."""
    checkpoints.wait()
    return _newest(checkpoints, wired, lambda _: [])


def batches(
    wired: wiring.Wiring, start: Start, skip: int, stopping: Callable[[], bool]
) -> assembly.Ahead:
    """The training batches from a start on.

    Args:
        wired: the run.
        start: where it goes on.
        skip: batches to leave out.
        stopping: whether a stop was asked of the processes.
    """
    first = start.step + start.left_out
    if not batch.is_stream(wired.training_source):
        return wired.training_batches(first + skip, {}, stopping)
    found = wired.training_batches(first, start.positions, stopping)
    for _ in range(skip):
        next(found)
    return found


def _newest(
    checkpoints: manager.Manager,
    wired: wiring.Wiring,
    compare: Callable[[manager.Metadata], list[changes.Change]],
) -> Start:
    notes: list[str] = []
    while True:
        step, set_aside = checkpoints.newest_whole()
        notes += set_aside
        if not step:
            return Start(notes=tuple(notes))
        metadata = checkpoints.metadata(step)
        changed = compare(metadata)
        try:
            state = checkpoints.restore(step, wired.shapes)
        except manager.Damaged as damaged:
            notes.append(checkpoints.set_aside(step, failures.first_line(damaged)))
            continue
        notes += [f"configuration changed: {change}" for change in changed]
        return Start(
            step,
            state,
            positions=metadata.get(POSITIONS, {}),
            left_out=metadata[LEFT_OUT],
            evaluated=bool(metadata["metrics"]),
            notes=tuple(notes),
        )


def _require_same_data(metadata: manager.Metadata, wired: wiring.Wiring, allowed: bool) -> None:
    fingerprint = wired.training_source.fingerprint
    if metadata["data_fingerprint"] != fingerprint and not allowed:
        raise failures.BadInput(
            f"the fingerprint of the training data is {fingerprint}, the checkpoint of this "
            f"workdir was made with {metadata['data_fingerprint']}; give the same data, start anew "
            "in another --workdir, or give --allow_config_change to go on all the same."
        )
