"""Trackers of experiments beside TensorBoard: one file for each, behind one interface.

The library of a tracker is imported in a process of its own alone (`child.py`).
"""

import pathlib
import typing
from collections.abc import Mapping

Value = bool | float | str


class Identity(typing.NamedTuple):
    """What a tracker knows a run by, the same in all its attempts."""

    key: str  # of letters and digits, unlike that of any other run
    name: str  # for people
    folder: pathlib.Path  # of the run on this host, for what a tracker writes there


class Log(typing.Protocol):
    """A run that a tracker has opened."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records metrics of a step; a step that an earlier attempt recorded may come again."""

    def picture(self, step: int, name: str, data: bytes, ending: str) -> None:
        """Records a picture: bytes of a file with the ending "png" or "jpg"."""

    def close(self, complete: bool) -> None:
        """Sends the rest; `complete` unless another attempt will go on with the run."""


class Tracker(typing.Protocol):
    """A tracker as gin configures it.

    Attributes:
        library: that it needs.
        needs_folder: whether the folder of the run must be on this host, and none of a bucket.
    """

    library: typing.ClassVar[str]

    @property
    def needs_folder(self) -> bool:
        """See above."""

    def open(self, identity: Identity, config: Mapping[str, Value]) -> Log:
        """Begins a run, or goes on with that of the same key.

        Args:
            config: values by their names in gin, which an attempt may have changed.
        """
