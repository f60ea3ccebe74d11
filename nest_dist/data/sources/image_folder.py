"""A folder with one subfolder of pictures for each class."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import posixpath
import typing
from collections.abc import Sequence

import numpy as np

from nest_dist.base import failures, settings
from nest_dist.data import batch, classes

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
THREADS = 16
# Of a folder with more bytes, the fingerprint reads the beginning, middle and end of each picture.
SAMPLED_ABOVE_BYTES = 1 << 30
SAMPLE_BYTES = 4096
IN_NO_CLASS = "it lies in no class folder"


class Picture(typing.NamedTuple):
    """A file: its name below the folder, its size in bytes, the time of its last change in ns."""

    name: str
    size: int
    modified: int


class PassedOver(typing.NamedTuple):
    """What is not read: its name below the folder, and the reason."""

    name: str
    reason: str


class Listing(typing.NamedTuple):
    """What is below a folder: pictures by folder and name, folders, and all other entries."""

    pictures: list[Picture]
    folders: list[str]
    passed_over: list[PassedOver]


class Named(typing.Protocol):
    """A file with its folders in its name."""

    @property
    def name(self) -> str: ...


File = typing.TypeVar("File", bound=Named)


@dataclasses.dataclass(frozen=True)
class Classes(typing.Generic[File]):
    """The classes of some pictures."""

    names: tuple[str, ...]
    # The pictures that have a class, each with its label or its set of classes
    entries: tuple[tuple[File, int | batch.ClassSet], ...]
    passed_over: list[PassedOver]  # classes without pictures, then pictures without class


@settings.register
class ImageFolder:
    """Pictures at FOLDER/SPLIT/CLASS/NAME; the classes are the subfolders in alphabetical order.

    Attributes:
        folder: of the splits.
        split: name of the subfolder of one split; "" if `folder` itself holds the classes.
    """

    folder: str
    split: str

    def open(self) -> "Files":
        """Lists all pictures; a picture is read when its example is.

        Raises:
            BadInput: if the folder is missing, or holds no class folders with pictures.
        """
        root = pathlib.Path(self.folder).expanduser() / self.split
        if not root.is_dir():
            folder = pathlib.Path(self.folder).expanduser()
            beside = folder.iterdir() if folder.is_dir() else ()
            there = sorted(entry.name for entry in beside if entry.is_dir())
            raise failures.BadInput(
                f"ImageFolder.folder is {self.folder} and ImageFolder.split {self.split!r}, but "
                f"{root.absolute()} is no folder; {classes.other_splits(there)}"
                "give the folder that holds one subfolder for each split."
            )
        listing = listed(root)
        holders = holders_of_classes(listing.pictures, root)
        if not holders:
            raise failures.BadInput(
                f"{root} has no subfolders, ImageFolder needs one for each class; move the "
                "pictures into folders named by their class."
            )
        if holders != [""]:
            raise failures.BadInput(
                f"{root} holds class folders deeper down, in {classes.few(holders)}; give the "
                f"folder of one split, such as {root / holders[-1]}."
            )
        chosen = by_folder(listing.pictures, listing.folders)
        if passed_over := chosen.passed_over + listing.passed_over:
            logging.getLogger(__name__).warning(
                "%s: %d entries are passed over, such as %s: %s",
                *(root, len(passed_over), *passed_over[0]),
            )
        return Files(str(root), chosen.names, chosen.entries)


@dataclasses.dataclass(frozen=True, eq=False)
class Files(batch.Source):
    """Pictures in files below a folder, each with its label or its set of classes."""

    root: str
    class_names: tuple[str, ...]
    entries: tuple[tuple[Picture, int | batch.ClassSet], ...]

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """The digest of all names, labels and bytes; of large folders, of samples of the bytes."""
        whole = sum(picture.size for picture, _ in self.entries) <= SAMPLED_ABOVE_BYTES
        size, parts = len(self), 4 * THREADS
        ranges = [range(size * n // parts, size * (n + 1) // parts) for n in range(parts)]
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            digests = list(pool.map(functools.partial(self._digest, whole), ranges))
        return hashlib.sha256(repr((self.class_names, digests)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> batch.Example:
        picture, label = self.entries[index]
        path = os.path.join(self.root, picture.name)
        with open(path, "rb") as file:
            return batch.labelled(file.read(), label, path)

    def class_counts(self) -> tuple[int, ...]:
        sets = (label.labels if isinstance(label, tuple) else (label,) for _, label in self.entries)
        counts = collections.Counter(label for labels in sets for label in labels)
        return tuple(counts[label] for label in range(len(self.class_names)))

    def known_labels(self) -> np.ndarray | None:
        labels = [label for _, label in self.entries]
        return None if any(isinstance(label, tuple) for label in labels) else np.array(labels)

    def _digest(self, whole: bool, indices: range) -> str:
        digest = hashlib.sha256()
        for index in indices:
            picture, label = self.entries[index]
            digest.update(repr((picture.name, label, picture.size)).encode())
            with open(os.path.join(self.root, picture.name), "rb") as file:
                last = max(0, picture.size - SAMPLE_BYTES)
                for start in (0,) if whole else (0, last // 2, last):
                    file.seek(start)
                    digest.update(file.read(-1 if whole else SAMPLE_BYTES))
        return digest.hexdigest()


def by_folder(
    files: Sequence[File], folders: Sequence[str] = (), holder: str = ""
) -> Classes[File]:
    """The classes of pictures by the names of their folders, those without pictures included."""
    known = {posixpath.dirname(file.name) for file in files}
    paths = sorted(path for path in {*known, *folders} - {""} if posixpath.dirname(path) == holder)
    label_of = {path: label for label, path in enumerate(paths)}
    labelled = [(file, label_of.get(posixpath.dirname(file.name))) for file in files]
    entries = tuple((file, label) for file, label in labelled if label is not None)
    empty = [path for path in paths if path not in known]
    passed_over = [PassedOver(path, "a class folder without pictures") for path in empty]
    passed_over += [PassedOver(file.name, IN_NO_CLASS) for file, label in labelled if label is None]
    return Classes(tuple(map(posixpath.basename, paths)), entries, passed_over)


def holders_of_classes(files: Sequence[Named], path: pathlib.Path) -> list[str]:
    """The folders of class folders with pictures, "" for the top, without class folders.

    Raises:
        BadInput: if there are no pictures.
    """
    if not files:
        raise failures.BadInput(
            f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))}); give one that does, with a "
            "folder for each class."
        )
    with_pictures = {posixpath.dirname(file.name) for file in files} - {""}
    return sorted({posixpath.dirname(folder) for folder in with_pictures} - with_pictures)


def why_passed_over(name: str) -> str:
    """The reason why a file of this name is not read; empty for a picture."""
    base = posixpath.basename(name)
    if base.startswith("._"):
        return "a file of macOS beside another"
    if posixpath.splitext(base)[1].lower() not in SUFFIXES:
        return "no picture by its name"
    return "it is hidden" if base.startswith(".") else ""


def listed(root: pathlib.Path) -> Listing:
    """Everything below a folder."""
    complete, level = Listing([], [], []), [""]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        while level:
            listings = list(pool.map(functools.partial(_scan, root), level))
            level = [name for listing in listings for name in listing.folders]
            for listing in listings:
                complete.pictures.extend(listing.pictures)
                complete.folders.extend(listing.folders)
                complete.passed_over.extend(listing.passed_over)
    complete.pictures.sort(key=lambda picture: posixpath.split(picture.name))
    complete.passed_over.sort()
    return complete


def _is_above(link: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a link leads to a folder in which it lies, by way of other links, too."""
    target = link.resolve()
    return any(it.resolve().is_relative_to(target) for it in (folder, *folder.parents))


def _scan(root: pathlib.Path, folder: str) -> Listing:
    """The entries of one folder."""
    listing = Listing([], [], [])
    for entry in os.scandir(root / folder):
        name, reason = posixpath.join(folder, entry.name), ""
        if entry.is_symlink() and not os.path.exists(entry.path):
            reason = why_passed_over(name) or "a dangling link"
        elif entry.is_dir():
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                reason = "it is hidden"
            elif entry.is_symlink() and _is_above(pathlib.Path(entry.path), root / folder):
                reason = "a link to a folder above it"
            else:
                listing.folders.append(name)
        elif not (reason := why_passed_over(name)):
            if entry.is_file():
                stat = entry.stat()
                listing.pictures.append(Picture(name, stat.st_size, stat.st_mtime_ns))
            else:
                reason = "no file"
        if reason:
            listing.passed_over.append(PassedOver(name, reason))
    return listing
