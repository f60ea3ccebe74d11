"""Files in the safetensors format: a JSON header, then the bytes of the arrays.

Source: https://github.com/huggingface/safetensors, section Format.
"""

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  makes bfloat16 a NumPy type, which the library asks for by name
import numpy as np
import safetensors.numpy

from nest_dist.base import failures

Metadata = Mapping[str, str]

_LENGTH_BYTES = 8  # of the number that precedes the header
_HEADER_BYTES = 1 << 24  # that of a NesT-B has 0.1 MB


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[()], dict[str, str]]:
    """Arrays by name, nothing that is left out, and the metadata.

    Raises:
        ValueError: if the header is longer than that of any NesT; any exception if it is corrupt.
    """
    with path.open("rb") as start:
        length = int.from_bytes(start.read(_LENGTH_BYTES), "little")
    if _HEADER_BYTES < length < path.stat().st_size:
        raise ValueError(f"its header has {length} bytes, of {_HEADER_BYTES}")
    with safetensors.safe_open(path, framework="np") as file:
        return file.get_tensors(), (), file.metadata() or {}


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Metadata) -> None:
    """Writes arrays and metadata; equal contents give equal bytes.

    Raises:
        OSError: if the folder cannot be written or is full.
    """
    path.touch()
    mode = path.stat().st_mode
    dense = {name: np.asarray(leaf, order="C") for name, leaf in arrays.items()}
    try:
        safetensors.numpy.save_file(dense, path, dict(metadata) or None)
    except safetensors.SafetensorError as error:
        raise OSError(None, failures.first_line(error)) from None
    path.chmod(mode)  # the library replaces the file by one that only its owner can read
    if metadata:
        _order_metadata(path, metadata)


def looks_like(first_bytes: bytes) -> bool:
    """Whether a file that begins so is meant to be one of this format."""
    return first_bytes[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def _order_metadata(path: pathlib.Path, metadata: Metadata) -> None:
    """Brings the metadata of a file, which the library writes in random order, into this one.

    Source: https://github.com/safetensors/safetensors/issues/584.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = {**json.loads(file.read(length)), "__metadata__": metadata}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(_LENGTH_BYTES)
        file.write(text.ljust(length))  # as long as before: the library writes JSON like this
