"""Files of weights, whose first bytes tell their format, not their names."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from nest_dist.base import failures, files
from nest_dist.pretrained import memory_limit
from nest_dist.pretrained.formats import flax_file, safetensors_file, torch_file

MOST_ARRAYS = 20_000  # a NesT-B has 500
LONGEST_NAME = 500
_READERS = {
    safetensors_file: ("safetensors file", "write"),
    torch_file: ("PyTorch checkpoint", "save"),
    flax_file: ("flax checkpoint", "write"),
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The content of a file."""

    arrays: dict[str, np.ndarray]  # by name, as the file has them
    left_out: tuple[str, ...] = ()  # entries that are no weights, such as the optimizer's state
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)  # of a safetensors file


def read(path: pathlib.Path) -> WeightFile:
    """The weights of a safetensors, PyTorch or flax file.

    Raises:
        BadInput: if it is none of these, corrupt, or larger than memory.
    """
    try:
        with path.open("rb") as opened:
            first_bytes = opened.read(16)
    except OSError as error:
        raise failures.BadInput(
            f"{path} cannot be read ({error.strerror}); give a file of weights."
        ) from None
    reader = next((reader for reader in _READERS if reader.looks_like(first_bytes)), None)
    # A safetensors file, too, may begin like a pickle: with the length of its header.
    if reader is None and first_bytes.startswith(b"\x80\x02"):
        raise failures.BadInput(
            f"{path} is a bare pickle, which runs code when it is read; save the state dictionary "
            "with PyTorch 1.6 or newer, or as safetensors."
        )
    if reader is None:
        raise failures.BadInput(
            f"{path} is no file of weights: it begins with {first_bytes[:4]!r}; give a "
            "safetensors, PyTorch or flax msgpack file."
        )
    # Headers take little beside the arrays.
    memory_limit.require(path, path.stat().st_size)
    try:
        file = WeightFile(*reader.read(path))
        if len(file.arrays) > MOST_ARRAYS:
            raise ValueError(f"{len(file.arrays)} arrays, of {MOST_ARRAYS}")
        if (longest := max(map(len, file.arrays), default=0)) > LONGEST_NAME:
            raise ValueError(f"a name of {longest} characters, of {LONGEST_NAME}")
        return file
    except failures.BadInput:
        raise
    # A corrupt file can raise nearly any exception, none of which says more than this.
    except Exception as error:
        kind, write = _READERS[reader]
        raise failures.BadInput(
            f"{path} is no complete {kind} ({failures.first_line(error)}); fetch or {write} it "
            "again."
        ) from None


def write(path: pathlib.Path, writer: Callable[[pathlib.Path], object]) -> None:
    """Lets `writer` fill a file that appears under its name only when it is complete.

    Raises:
        BadInput: if the file exists already or is being written, or the folder cannot be written.
    """
    with _writable(path), files.claimed(path):
        require_new(path)
        files.write_durably(path, writer)


def require_new(path: pathlib.Path) -> None:
    """Checks that no such file exists."""
    with _writable(path):
        exists = path.exists()
    if exists:
        raise failures.BadInput(f"{path} exists already; remove it, or choose another name.")


@contextlib.contextmanager
def _writable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failures.BadInput(
            f"{path} cannot be written ({error.strerror}); choose another folder."
        ) from None
