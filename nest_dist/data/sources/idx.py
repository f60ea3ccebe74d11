"""Data sets in the four IDX files of MNIST: Fashion-MNIST, MNIST, Kuzushiji-MNIST and others."""

import dataclasses
import gzip
import pathlib
import struct
import typing

import gin
import numpy as np

from nest_dist.base import checks, failures
from nest_dist.data.sources import arrays

FILE_PREFIX = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08


@gin.register
@dataclasses.dataclass(frozen=True)
class Idx:
    """Grey pictures from a folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, also `.gz`.

    Attributes:
        folder: where the four files are.
        split: "train" or "test".
        class_names: the name of each label.
    """

    folder: str
    split: typing.Literal["train", "test"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.types(self)

    def open(self) -> arrays.Arrays:
        """The split in memory: uint8 [N, H, W, 1].

        Raises:
            BadInput: if a file is missing, is no IDX file, is cut short, or holds other labels.
        """
        prefix = pathlib.Path(self.folder).expanduser() / FILE_PREFIX[self.split]
        images = _read(prefix.with_name(prefix.name + "-images-idx3-ubyte"), dimensions=3)
        labels = _read(prefix.with_name(prefix.name + "-labels-idx1-ubyte"), dimensions=1)
        if len(images) != len(labels):
            raise failures.BadInput(
                f"{self.folder} has {len(images)} {self.split} images and {len(labels)} labels; "
                "take both files from the same data set."
            )
        if labels.size and (highest := int(labels.max())) >= len(self.class_names):
            raise failures.BadInput(
                f"{self.folder} has label {highest}, but Idx.class_names has "
                f"{len(self.class_names)} names; name every class."
            )
        return arrays.Arrays(images[..., None], labels, self.class_names)


def _read(path: pathlib.Path, dimensions: int) -> np.ndarray:
    compressed = path.with_name(path.name + ".gz")
    try:
        if compressed.exists():
            content = gzip.decompress(compressed.read_bytes())
        else:
            content = path.read_bytes()
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise failures.BadInput(
            f"{path}(.gz) cannot be read ({reason}); set Idx.folder to the folder with the four "
            "IDX files."
        ) from None
    header = 4 + 4 * dimensions
    magic = struct.pack(">BBBB", 0, 0, UNSIGNED_BYTE, dimensions)
    if len(content) < header or content[:4] != magic:
        raise failures.BadInput(
            f"{path} starts with {content[:4].hex()}, an IDX file of {dimensions} dimensions with "
            f"{magic.hex()}; fetch the file again."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != np.prod(shape):
        raise failures.BadInput(
            f"{path} has {len(content) - header} bytes of data, its header announces "
            f"{int(np.prod(shape))}; fetch the file again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
