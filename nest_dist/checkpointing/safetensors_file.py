"""The safetensors format: a JSON header with shapes and offsets, then the bytes of the arrays.

Source: https://github.com/huggingface/safetensors, section Format.
"""

import json
import math
import pathlib
import typing
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from nest_dist.base import failures
from nest_dist.checkpointing import memory

Metadata = dict[str, str]

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the reference implementation's limit
_DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Metadata]:
    """Arrays by name, and the texts that came with them. The arrays are views of the file.

    Raises:
        BadInput: if the header does not describe the file, or memory cannot hold it.
    """
    header, start = _header(path)
    data_bytes = path.stat().st_size - start
    try:
        metadata = dict(header.pop("__metadata__", {}))
        if not all(isinstance(text, str) for text in metadata.values()):
            raise TypeError("not texts")
        places = {name: _Place(entry) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise _corrupt(path, "its header does not describe arrays") from None
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1].start):
        if place.start != end or place.stop - place.start != place.num_bytes:
            raise _corrupt(path, f"the bytes of {name} overlap others or do not fit its shape")
        end = place.stop
    if end != data_bytes:
        raise _corrupt(path, f"its arrays take {end} bytes, but {data_bytes} follow the header")
    memory.require(path, end)
    data = np.memmap(path, np.uint8, "r", start) if end else np.empty(0, np.uint8)
    arrays = {
        name: data[place.start : place.stop].view(place.dtype).reshape(place.shape)
        for name, place in places.items()
    }
    return arrays, metadata


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Metadata) -> None:
    """Writes arrays and texts; equal contents give equal bytes."""
    names_of = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, typing.Any] = {"__metadata__": metadata} if metadata else {}
    stop = 0
    for name, leaf in arrays.items():
        start, stop = stop, stop + leaf.nbytes
        header[name] = {
            "dtype": names_of[leaf.dtype],
            "shape": list(leaf.shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # readers map the arrays, which must be aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for leaf in arrays.values():
            # As bytes, because bfloat16 has no buffer of its own.
            file.write(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)


def looks_like(first_bytes: bytes) -> bool:
    """Whether a file that begins so is meant to be one of this format."""
    return first_bytes[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


class _Place:
    """Where an array lies, relative to the end of the header."""

    def __init__(self, entry: Mapping[str, typing.Any]) -> None:
        self.dtype = _DTYPES[entry["dtype"]]
        self.shape = tuple(int(length) for length in entry["shape"])
        self.start, self.stop = (int(offset) for offset in entry["data_offsets"])
        if min((*self.shape, self.start), default=0) < 0:
            raise ValueError("negative")
        if math.prod(max(length, 1) for length in self.shape) >= 2**48:
            raise ValueError("more than any machine can address")
        self.num_bytes = math.prod(self.shape) * self.dtype.itemsize


def _header(path: pathlib.Path) -> tuple[dict[str, typing.Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise _corrupt(path, f"it announces a header of {length} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _corrupt(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _corrupt(path, "its header does not describe arrays")
    return header, _LENGTH_BYTES + length


def _corrupt(path: pathlib.Path, why: str) -> failures.BadInput:
    return failures.BadInput(
        f"{path} is no whole safetensors file: {why}; fetch or write it again."
    )
