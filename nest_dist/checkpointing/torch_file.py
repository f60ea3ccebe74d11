"""Arrays from a PyTorch checkpoint (.pth), without PyTorch and without running what it contains.

Such a file is a zip archive: a pickle that says how arrays are put together, and their bytes. The
pickle is read by an interpreter that knows the few functions which rebuild arrays, and no others.
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
from nest_dist.checkpointing import memory

_STORAGES: Mapping[str, typing.Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Where training scripts keep the weights, the averaged ones first, as timm looks for them.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")
# What wrappers put before the names.
_WRAPPERS = ("module.", "_orig_mod.")


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The state dictionary of a checkpoint, and the names of its other parts.

    Raises:
        BadInput: if the file is damaged, runs code, is of an old format, or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            memory.require(path, sum(record.file_size for record in archive.infolist()))
            tree = _load(path, archive)
    except failures.BadInput:
        raise
    # A damaged pickle can raise nearly anything, none of which says more than this.
    except Exception as error:
        raise failures.BadInput(
            f"{path} is no whole PyTorch checkpoint ({failures.first_line(error)}); fetch or save "
            "it again."
        ) from None
    if not isinstance(tree, dict):
        raise failures.BadInput(
            f"{path} holds one {type(tree).__name__}, not weights by name; save model.state_dict()."
        )
    inside = next((name for name in _INSIDE if isinstance(tree.get(name), dict)), None)
    chosen = tree if inside is None else tree[inside]
    others = () if inside is None else tuple(name for name in tree if name != inside)
    return {_bare(str(name)): np.asarray(leaf) for name, leaf in chosen.items()}, others


def looks_like(first_bytes: bytes) -> bool:
    """Whether a file that begins so is meant to be one of this format."""
    return first_bytes.startswith(b"PK\x03\x04")


def looks_old(first_bytes: bytes) -> bool:
    """Whether a file that begins so is a bare pickle, as PyTorch wrote them before 1.6."""
    return first_bytes.startswith(b"\x80\x02")


def _load(path: pathlib.Path, archive: zipfile.ZipFile) -> typing.Any:
    (pickled,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
    folder = pickled.removesuffix("data.pkl")
    return _Unpickler(path, archive, folder, archive.read(pickled)).load()


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, path: pathlib.Path, archive: zipfile.ZipFile, folder: str, pickled: bytes
    ) -> None:
        super().__init__(io.BytesIO(pickled))
        self._path = path
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> typing.Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
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


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
