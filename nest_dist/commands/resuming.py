"""Going on from the newest whole checkpoint of a workdir."""

import dataclasses
import typing

from nest_dist.base import failures
from nest_dist.checkpointing import manager
from nest_dist.commands import changes, wiring
from nest_dist.data import batch

# Where the metadata of a checkpoint holds the positions of a stream's virtual shards.
POSITIONS = "data_positions"


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        step: steps already done.
        state: after them; None if the run begins.
        positions: of the data's virtual shards; empty where the data has an index.
        notes: what happened to checkpoints and configuration, line by line.
    """

    step: int
    state: typing.Any
    positions: batch.Positions
    notes: tuple[str, ...]


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
    notes: list[str] = []
    while True:
        step, set_aside = checkpoints.newest_whole()
        notes += set_aside
        if not step:
            return Start(0, None, {}, tuple(notes))
        metadata = checkpoints.metadata(step)
        changed = changes.between(metadata["configuration"], text)
        changes.require_same_run(changed, allow_change)
        _require_same_data(metadata, wired, allow_change)
        try:
            state = checkpoints.restore(step, wired.shapes)
        except manager.Damaged as damaged:
            notes.append(checkpoints.set_aside(step, failures.first_line(damaged)))
            continue
        notes += [f"configuration changed: {change}" for change in changed]
        return Start(step, state, metadata.get(POSITIONS, {}), tuple(notes))


def _require_same_data(metadata: manager.Metadata, wired: wiring.Wiring, allowed: bool) -> None:
    fingerprint = wired.training_source.fingerprint
    if metadata["data_fingerprint"] != fingerprint and not allowed:
        raise failures.BadInput(
            f"the fingerprint of the training data is {fingerprint}, the checkpoint of this "
            f"workdir was made with {metadata['data_fingerprint']}; give the same data, start anew "
            "in another --workdir, or give --allow_config_change to go on all the same."
        )
