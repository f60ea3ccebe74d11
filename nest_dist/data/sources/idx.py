"""Data sets in four IDX files: MNIST, Fashion-MNIST, Kuzushiji-MNIST and others."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from nest_dist.base import checks, failures, files, settings
from nest_dist.data import batch, parts

FILE_PREFIX = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08
LARGEST_BYTES = 1 << 32  # of a file, which is held in memory


@settings.register
class Idx:
    """Grey pictures from a folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, also `.gz`.

    Attributes:
        folder: of the four files.
        split: "train" or "test".
        class_names: the name of each label.
    """

    folder: str
    split: str
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.one_of("Idx.split", parts.split_name(self.split), FILE_PREFIX)

    def open(self) -> batch.Arrays:
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
        return batch.Arrays(images[..., None], labels, self.class_names)


def _read(path: pathlib.Path, dimensions: int) -> np.ndarray:
    compressed = path.with_name(path.name + ".gz")
    length = 4 + 4 * dimensions
    try:
        with gzip.open(compressed) if compressed.exists() else path.open("rb") as file:
            header = file.read(length)
            shape = struct.unpack(f">{dimensions}I", header[4:].ljust(length - 4, b"\0"))
            # No more than the header announces: little may be compressed to say a lot.
            announced = math.prod(shape)
            content = file.read(min(announced, LARGEST_BYTES) + 1)
    except (OSError, EOFError, zlib.error) as error:
        failures.raise_trouble(error)
        reason = getattr(error, "strerror", None) or str(error)
        raise failures.BadInput(
            f"{files.absolute(path)}(.gz) cannot be read ({reason}); set Idx.folder to the folder "
            "with the four IDX files."
        ) from None
    magic = struct.pack(">BBBB", 0, 0, UNSIGNED_BYTE, dimensions)
    if len(header) < length or header[:4] != magic:
        raise failures.BadInput(
            f"{path} starts with {header[:4].hex()}, an IDX file of {dimensions} dimensions with "
            f"{magic.hex()}; fetch the file again."
        )
    if len(content) != announced:
        has = "more" if len(content) > announced else f"{len(content)}"
        raise failures.BadInput(
            f"{path} has {has} bytes of data, its header announces {announced}; fetch the file "
            "again."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
