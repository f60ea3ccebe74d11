"""A folder with one subfolder of pictures for each class, as it lies on a disk."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import pathlib

import gin

from nest_dist.base import checks, failures
from nest_dist.data import batch

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
LISTING_THREADS = 16


@gin.register
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Pictures at FOLDER/SPLIT/CLASS/NAME; the classes are the subfolders in alphabetical order.

    Attributes:
        folder: where the splits are.
        split: name of the subfolder of one split; "" where the classes are directly in `folder`.
    """

    folder: str
    split: str

    def __post_init__(self) -> None:
        checks.types(self)

    def open(self) -> "Files":
        """The names of all pictures; the pictures are read when they are asked for.

        Raises:
            BadInput: if the folder is missing or has no classes, or a class has no pictures.
        """
        root = pathlib.Path(self.folder).expanduser() / self.split
        if not root.is_dir():
            raise failures.BadInput(
                f"ImageFolder.folder is {self.folder} and ImageFolder.split {self.split!r}, but "
                f"{root} is no folder; give the folder that holds one subfolder for each split."
            )
        entries = (entry for entry in os.scandir(root) if not entry.name.startswith("."))
        names = sorted(entry.name for entry in entries if entry.is_dir())
        if not names:
            raise failures.BadInput(
                f"{root} has no subfolders, ImageFolder needs one for each class; move the "
                "pictures into folders named by their class."
            )
        with concurrent.futures.ThreadPoolExecutor(LISTING_THREADS) as pool:
            listings = list(pool.map(_pictures, [root / name for name in names]))
        for name, listing in zip(names, listings, strict=True):
            if not listing:
                raise failures.BadInput(
                    f"class {name!r} of {root} has no pictures ({', '.join(sorted(SUFFIXES))}); "
                    "add some or remove the folder."
                )
        return Files(
            root=str(root),
            class_names=tuple(names),
            entries=tuple(
                (f"{name}/{picture}", label, size)
                for label, (name, listing) in enumerate(zip(names, listings, strict=True))
                for picture, size in listing
            ),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Pictures in files.

    Attributes:
        root: folder that names are relative to.
        class_names: the name of each label.
        entries: name, label and size in bytes of each picture.
    """

    root: str
    class_names: tuple[str, ...]
    entries: tuple[tuple[str, int, int], ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of all names and sizes; reading every picture would take too long."""
        return hashlib.sha256(repr(self.entries).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> batch.Example:
        name, label, _ = self.entries[index]
        path = os.path.join(self.root, name)
        try:
            with open(path, "rb") as file:
                return {"image": file.read(), "label": label, "key": path}
        except OSError as error:
            raise batch.Unreadable(f"{path}: {error.strerror}") from None


def _pictures(folder: pathlib.Path) -> list[tuple[str, int]]:
    """Names and sizes in bytes, sorted by name."""
    return sorted(
        (entry.name, entry.stat().st_size)
        for entry in os.scandir(folder)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file()
    )
