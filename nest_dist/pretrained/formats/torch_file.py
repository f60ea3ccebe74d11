"""Arrays from a PyTorch checkpoint (.pth), without PyTorch and without running what it contains.

Such a file is a zip archive of a pickle, which describes arrays, and of their bytes. An unpickler
reads it that knows the few functions which rebuild arrays, and no others.
"""

import collections
import io
import pathlib
import pickle
import typing
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from nest_dist.base import failures
from nest_dist.pretrained import memory_limit

# Keys under which training scripts save weights, averaged ones first, in timm's order.
_WEIGHT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The state dictionary of a checkpoint, and the names of its other entries.

    Raises:
        BadInput: if it runs code or is larger than memory; any exception if it is corrupt.
    """
    with zipfile.ZipFile(path) as archive:
        memory_limit.require(path, sum(record.file_size for record in archive.infolist()))
        tree = _Unpickler(path, archive).load()
    if not isinstance(tree, dict):
        raise failures.BadInput(
            f"{path} holds one {type(tree).__name__}, not weights by name; save model.state_dict()."
        )
    key = next((key for key in _WEIGHT_KEYS if isinstance(tree.get(key), dict)), None)
    state, others = (tree, ()) if key is None else (tree.pop(key), tuple(tree))
    arrays = {
        # Wrapped models give these prefixes to names.
        str(name).removeprefix("module.").removeprefix("_orig_mod."): np.asarray(leaf)
        for name, leaf in state.items()
    }
    return arrays, others


def looks_like(first_bytes: bytes) -> bool:
    """Whether a file that begins so is meant to be one of this format."""
    return first_bytes.startswith(b"PK\x03\x04")


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile) -> None:
        (pickled,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        super().__init__(io.BytesIO(archive.read(pickled)))
        self._path = path
        self._archive = archive
        self._folder = pickled.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise failures.BadInput(
            f"{self._path} contains more than weights, namely {module}.{name}, which would have "
            "to be run to be read; save model.state_dict() alone, or use safetensors."
        )

    def persistent_load(self, pid: typing.Any) -> np.ndarray:
        _, dtype, key, _, length = pid
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype, length)


def _rebuild(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> np.ndarray:
    """An array from its storage; strides count elements, as PyTorch's do."""
    reach = offset + sum(
        (length - 1) * stride for length, stride in zip(shape, strides, strict=True)
    )
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and reach >= len(storage)):
        raise ValueError("an array reaches beyond its storage")
    in_bytes = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes, writeable=False)


_KNOWN: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "DoubleStorage"): np.float64,
    ("torch", "FloatStorage"): np.float32,
    ("torch", "HalfStorage"): np.float16,
    ("torch", "BFloat16Storage"): ml_dtypes.bfloat16,
    ("torch", "LongStorage"): np.int64,
    ("torch", "IntStorage"): np.int32,
    ("torch", "ShortStorage"): np.int16,
    ("torch", "CharStorage"): np.int8,
    ("torch", "ByteStorage"): np.uint8,
    ("torch", "BoolStorage"): np.bool_,
}
