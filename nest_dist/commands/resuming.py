"""Going on from the newest whole checkpoint of a workdir."""

import dataclasses
import typing

from nest_dist.base import failures
from nest_dist.checkpointing import manager
from nest_dist.commands import configuration, wiring


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        step: steps already done.
        state: after them; None if the run begins.
        notes: what happened to checkpoints and configuration, line by line.
    """

    step: int
    state: typing.Any
    notes: tuple[str, ...]


def find(checkpoints: manager.Manager, wired: wiring.Wiring, text: str) -> Start:
    """Restores the newest checkpoint that is whole, decided by all processes together.

    Args:
        checkpoints: of the workdir.
        wired: the run.
        text: its operative configuration.
    Raises:
        BadInput: if the checkpoint belongs to another run.
    """
    notes: list[str] = []
    while True:
        step, set_aside = checkpoints.newest_whole()
        notes += set_aside
        if not step:
            return Start(0, None, tuple(notes))
        metadata = checkpoints.metadata(step)
        _require_same_run(metadata, wired)
        try:
            state = checkpoints.restore(step, wired.shapes)
        except manager.Damaged as damaged:
            notes.append(checkpoints.set_aside(step, failures.first_line(damaged)))
            continue
        changes = configuration.difference(metadata["configuration"], text)
        notes += [f"configuration changed: {change}" for change in changes]
        return Start(step, state, tuple(notes))


def identity(wired: wiring.Wiring) -> dict[str, typing.Any]:
    """What the sequence of examples depends on: with other values a resume would be another run."""
    return {
        "Run.seed": wired.run.seed,
        "Run.global_batch": wired.run.global_batch,
        "data fingerprint": wired.training_source.fingerprint,
    }


def _require_same_run(metadata: manager.Metadata, wired: wiring.Wiring) -> None:
    for name, value in identity(wired).items():
        if metadata[name] != value:
            raise failures.BadInput(
                f"{name} is {value}, the checkpoint of this workdir was made with "
                f"{metadata[name]}; set it back, or start anew in another --workdir."
            )
