"""Files of weights, whatever their format: told by how they begin, not by what they are called."""

import dataclasses
import pathlib
import typing
from collections.abc import Callable

import numpy as np

from nest_dist.base import failures, files
from nest_dist.checkpointing import flax_file, safetensors_file, torch_file


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        arrays: by name, as the file has them.
        metadata: texts that a safetensors file carries.
        left_out: parts of the file that are no weights, such as the optimizer's state.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def read(path: pathlib.Path) -> WeightFile:
    """The weights of a safetensors, PyTorch or flax file.

    Raises:
        BadInput: if it is none of these, damaged, or larger than memory.
    """
    try:
        with path.open("rb") as file:
            first_bytes = file.read(16)
    except OSError as error:
        raise failures.BadInput(
            f"{path} cannot be read ({error.strerror}); give a file of weights."
        ) from None
    if safetensors_file.looks_like(first_bytes):
        arrays, metadata = safetensors_file.read(path)
        return WeightFile(arrays, metadata)
    if torch_file.looks_like(first_bytes):
        arrays, left_out = torch_file.read(path)
        return WeightFile(arrays, left_out=left_out)
    if torch_file.looks_old(first_bytes):
        raise failures.BadInput(
            f"{path} is a bare pickle, which runs code when it is read; save the state dictionary "
            "with PyTorch 1.6 or newer, or as safetensors."
        )
    if flax_file.looks_like(first_bytes):
        arrays, left_out = flax_file.read(path)
        return WeightFile(arrays, left_out=left_out)
    raise failures.BadInput(
        f"{path} is no file of weights: it begins with {first_bytes[:4]!r}; give a safetensors, "
        "PyTorch or flax msgpack file."
    )


def write(path: pathlib.Path, writer: Callable[[pathlib.Path], typing.Any]) -> None:
    """Lets `writer` fill a file that appears under its name only when it is whole.

    Raises:
        BadInput: if there is such a file already, or the folder cannot be written.
    """
    require_new(path)
    try:
        files.write_whole(path, writer)
    except OSError as error:
        raise _not_writable(path, error) from None


def require_new(path: pathlib.Path) -> None:
    """Checks that there is no such file yet.

    Raises:
        BadInput: if there is, or nobody can tell.
    """
    try:
        taken = path.exists()
    except OSError as error:
        raise _not_writable(path, error) from None
    if taken:
        raise failures.BadInput(f"{path} is there already; remove it, or choose another name.")


def _not_writable(path: pathlib.Path, error: OSError) -> failures.BadInput:
    return failures.BadInput(f"{path} cannot be written ({error.strerror}); choose another folder.")
