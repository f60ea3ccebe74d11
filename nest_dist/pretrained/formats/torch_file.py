"""Arrays from a PyTorch checkpoint (.pth), without PyTorch and without running what it contains.

Such a file is a zip archive of a pickle, which describes arrays, and of their bytes, uncompressed.
What lies beside the weights, such as the arguments of a training script, is left out unread.
"""

import math
import os
import pathlib
import typing
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from nest_dist.base import failures
from nest_dist.pretrained.formats import inert_pickle

# Keys under which training scripts save weights, averaged ones first, in timm's order.
_WEIGHT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
# A NesT-B with the state of its optimizer has a pickle of 0.3 MB, and a directory of 0.2 MB.
_PICKLE_BYTES = _DIRECTORY_BYTES = 1 << 24
_MOST_AXES, _LARGEST = 32, 1 << 48
_REBUILD = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_STORAGES: Mapping[str, typing.Any] = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The state dictionary of a checkpoint, and the names of its other entries.

    Raises:
        BadInput: if its weights are no arrays; any exception if it is corrupt.
    """
    _require_small_directory(path)
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [each for each in archive.infolist() if each.filename.endswith("data.pkl")]
        _require_honest(archive, pickled, path.stat().st_size)
        tree = inert_pickle.parse(archive.read(pickled))
        if not isinstance(tree, dict):
            kind = tree if isinstance(tree, inert_pickle.Call) else type(tree).__name__
            raise failures.BadInput(
                f"{path} holds one {kind}, not weights by name; save model.state_dict()."
            )
        key = next((key for key in _WEIGHT_KEYS if isinstance(tree.get(key), dict)), None)
        state, others = (tree, ()) if key is None else (tree.pop(key), tuple(tree))
        arrays = _Arrays(path, archive, pickled.filename.removesuffix("data.pkl"))
        return (
            # Wrapped models give these prefixes to names.
            {
                name.removeprefix("module.").removeprefix("_orig_mod."): arrays.of(name, leaf)
                for name, leaf in state.items()
            },
            tuple(other[:80] for other in others),
        )


def looks_like(first_bytes: bytes) -> bool:
    """Whether a file that begins so is meant to be one of this format."""
    return first_bytes.startswith(b"PK\x03\x04")


def _require_small_directory(path: pathlib.Path) -> None:
    """Python makes twenty times of each entry before anyone can look at it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 42))
        tail = file.read()
        if tail[-22:-18] != b"PK\x05\x06":
            raise ValueError("it does not end with the directory of a zip archive")
        length = int.from_bytes(tail[-10:-6], "little")
        if tail[:4] == b"PK\x06\x07":  # where the record of large archives is
            file.seek(int.from_bytes(tail[8:16], "little") + 40)
            length = int.from_bytes(file.read(8), "little")
    if length > _DIRECTORY_BYTES:
        raise ValueError(f"its directory has {length} bytes, of {_DIRECTORY_BYTES}")


def _require_honest(archive: zipfile.ZipFile, pickled: zipfile.ZipInfo, size: int) -> None:
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("a record is compressed, which PyTorch's are not")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records announce more bytes than it has")
    if pickled.file_size > _PICKLE_BYTES:
        raise ValueError(f"its pickle has {pickled.file_size} bytes, of {_PICKLE_BYTES}")


class _Arrays:
    """Arrays from their descriptions; together they have no more bytes than the file."""

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile, folder: str) -> None:
        self._path, self._archive, self._folder = path, archive, folder
        self._storages: dict[str, np.ndarray] = {}
        self._free_bytes = path.stat().st_size

    def of(self, name: str, leaf: object) -> np.ndarray:
        """The array that an entry of a state dictionary describes."""
        if isinstance(leaf, inert_pickle.Call) and str(leaf) == _PARAMETER:
            leaf = leaf.arguments[0]
        if not isinstance(leaf, inert_pickle.Call) or str(leaf) != _REBUILD:
            kind = leaf if isinstance(leaf, inert_pickle.Call) else type(leaf).__name__
            raise failures.BadInput(
                f"{self._path} contains more than weights, namely {kind} as {name[:80]!r}, "
                "which would have to be run to be read; save model.state_dict() alone, or use "
                "safetensors."
            )
        storage, offset, shape, strides, *_ = leaf.arguments
        return self._rebuilt(self._storage(storage.key), offset, shape, strides)

    def _storage(self, key: typing.Any) -> np.ndarray:
        _, kind, record, _, length = key
        if not isinstance(kind, inert_pickle.Name):
            raise TypeError("a storage has no type")
        name = f"{self._folder}data/{record}"
        if name not in self._storages:
            dtype = _STORAGES[str(kind)]
            self._storages[name] = np.frombuffer(self._archive.read(name), dtype, length)
        return self._storages[name]

    def _rebuilt(
        self, storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> np.ndarray:
        """An array from its storage; strides count elements, as PyTorch's do."""
        if len(shape) > _MOST_AXES or max((offset, *shape, *strides)) > _LARGEST:
            raise ValueError("an array is larger than any machine")
        reach = offset + sum(
            (length - 1) * stride for length, stride in zip(shape, strides, strict=True)
        )
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and reach >= len(storage)):
            raise ValueError("an array reaches beyond its storage")
        # A stride of 0 would make much of little, as soon as somebody copies the array.
        self._free_bytes -= math.prod(shape) * storage.itemsize
        if self._free_bytes < 0:
            raise ValueError("its arrays announce more bytes than it has")
        in_bytes = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes, writeable=False)
