"""Tar archives in webdataset's form, local or remote, whose examples are read by number.

The members of one key, NAME.jpg and NAME.cls, are an example. Each archive is listed once; the list
is kept beside it, or in the user's cache. A remote one is fetched to be listed, so its pictures go
to the cache as well.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import posixpath
import typing
import zipfile

import numpy as np

from nest_dist.base import failures, files, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.data import batch, classes
from nest_dist.data.sources import (
    byte_ranges,
    image_folder,
    named_splits,
    range_cache,
    retries,
    tar_archive,
)

INDEX, VERSION = ".index", 1
LONGEST_LABEL_BYTES = 1 << 20
THREADS = 8  # that read indices
HEADER_BYTES = 512  # of a member, before its content


@settings.register
class Tars:
    """A split of a data set in tar archives.

    Attributes:
        files: paths, patterns of paths, http(s) addresses, folders, or data sets of the Hub as
            hf://datasets/OWNER/NAME[@REVISION][/FOLDER]. Of a folder or a data set those tars are
            taken whose names say the split.
        split: such as "train".
        label: suffix of the members with the class, a number or a text; `json:FIELD` for a field of
            a member in JSON.
        num_classes: of numbers; None for the largest and those below it.
        cache: keeps what was fetched on this host; None keeps nothing.
    """

    files: tuple[str, ...] = means(Effect.NONE)
    split: str
    label: str = "cls"
    num_classes: typing.Annotated[int, Within(1)] | None = None
    cache: range_cache.Cache | None = means(Effect.NONE, default=None)

    def open(self) -> "Examples":
        """The examples of all archives; those without an index are listed first.

        Raises:
            BadInput: if a file or split is missing, an archive is corrupt or compressed, or an
                example has no picture, no class, or several.
        """
        storages = named_splits.resolved(
            "Tars.files", self.files, self.split, ".tar", retries.Retries(), self.cache
        )
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            indices = list(pool.map(functools.partial(_index, label=self.label), storages))
        first = storages[0].name
        if not sum(map(len, indices)):
            raise failures.BadInput(
                f"{first} and others hold no pictures; give tars that do, with members such as "
                f"NAME.jpg and NAME.{self.label}."
            )
        kinds = {index.labels.dtype.kind for index in indices if len(index)}
        if len(kinds) > 1:
            raise failures.BadInput(
                f"{first} and others have numbers and texts as classes; give tars of one kind."
            )
        if kinds == {"U"}:
            names = sorted({name for index in indices for name in np.unique(index.labels).tolist()})
            labels = [np.searchsorted(names, index.labels) for index in indices]
        else:
            labels = [index.labels for index in indices]
            low = min(int(np.min(own)) for own in labels if len(own))
            most = max(int(np.max(own)) for own in labels if len(own))
            count = self.num_classes or most + 1
            if low < 0 or most >= count:
                raise failures.BadInput(
                    f"{first} and others have label {low if low < 0 else most}, labels are 0 to "
                    f"{count - 1}; correct the label, or Tars.num_classes."
                )
            names = list(classes.numbered(count, f"{first} and others"))
        digest = hashlib.sha256(repr((names, [index.digest for index in indices])).encode())
        return Examples(
            tuple(index.storage for index in indices),
            tuple(map(len, indices)),
            np.concatenate([index.offsets for index in indices]),
            np.concatenate([index.sizes for index in indices]),
            np.concatenate(labels).astype(np.int32),
            tuple(names),
            digest.hexdigest()[:16],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(batch.Source):
    """Pictures of archives, each with its label."""

    storages: tuple[byte_ranges.File, ...]
    lengths: tuple[int, ...]
    offsets: np.ndarray  # of the bytes of each picture in its archive
    sizes: np.ndarray  # of each picture in bytes
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> batch.Example:
        storage = self.storages[int(np.searchsorted(self._ends, index, side="right"))]
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        content = storage.read(offset - HEADER_BYTES, HEADER_BYTES + size)
        name = content[:100].rstrip(b"\0").decode(errors="replace")
        return {
            "image": content[HEADER_BYTES:],
            "labels": (int(self.labels[index]),),
            "key": f"{posixpath.basename(storage.name)}: {name}",
        }

    def known_labels(self) -> np.ndarray | None:
        return self.labels

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)


@dataclasses.dataclass(frozen=True, eq=False)
class _Index:
    """What an archive holds: where each picture lies, and the class of each."""

    storage: byte_ranges.File
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray  # integers or texts
    digest: str  # of the names of all members, and of these

    def __len__(self) -> int:
        return len(self.offsets)


def _index(storage: byte_ranges.File, label: str) -> _Index:
    """The index of an archive: the one that is kept if it still fits, else made now."""
    reader = tar_archive.Reader(storage)
    storage = reader.storage
    stamp = json.dumps([VERSION, label, storage.size, storage.version])
    kept = [_in_cache(storage)]
    if not storage.is_remote:
        kept.insert(0, pathlib.Path(storage.name + INDEX))
    with files.alone(kept[-1]) if storage.is_remote else contextlib.nullcontext():
        for file in kept:
            try:
                with np.load(file, allow_pickle=False) as stored:
                    if str(stored["stamp"]) == stamp and storage.version:
                        fields = {name: stored[name] for name in ("offsets", "sizes", "labels")}
                        return _Index(storage, **fields, digest=str(stored["digest"]))
            except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
                continue  # missing, of another version, or damaged: it is made anew
        index = _listed(reader, label)
        _keep(index, stamp, kept)
    return index


def _keep(index: _Index, stamp: str, kept: list[pathlib.Path]) -> None:
    """Writes an index to the first file that can be written."""
    names = ("offsets", "sizes", "labels", "digest")
    content = {name: getattr(index, name) for name in names}

    def write(new: pathlib.Path) -> None:
        with new.open("wb") as file:
            np.savez(file, stamp=stamp, **content)

    for file in kept:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_durably(file, write)
            return
        except OSError as error:
            reason = failures.cause(error)
    logging.getLogger(__name__).warning(
        "the index of %s cannot be kept (%s); each start lists it anew", index.storage.name, reason
    )


def _in_cache(storage: byte_ranges.File) -> pathlib.Path:
    name = storage.name if storage.is_remote else os.path.realpath(storage.name)
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return files.user_cache("tars") / f"{digest[:32]}{INDEX}"


def _listed(reader: tar_archive.Reader, label: str) -> _Index:
    """Reads all headers and labels of an archive; pictures go to the cache if it has one."""
    suffix, _, field = label.partition(":")
    path = reader.storage.name
    pictures: dict[str, tar_archive.Member] = {}
    class_of: dict[str, int | str] = {}
    digest = hashlib.sha256()
    for member, refusal in tar_archive.members(reader):
        folder, base = posixpath.split(member.name)
        stem, _, ending = base.partition(".")
        key = posixpath.join(folder, stem)
        if refusal or base.startswith("."):
            continue
        digest.update(repr((member.name, member.size)).encode(errors="surrogateescape"))
        if f".{ending}".lower() in image_folder.SUFFIXES:
            if key in pictures:
                raise failures.BadInput(
                    f"{path} has two pictures of key {key!r}, {pictures[key].name} and "
                    f"{member.name}; give each example a key of its own."
                )
            pictures[key] = member
            if reader.storage.keeps:
                start, size = member.offset - HEADER_BYTES, HEADER_BYTES + member.size
                reader.storage.keep(start, size, reader.content(start, size))
        elif ending == suffix:
            content = reader.content(member.offset, min(member.size, LONGEST_LABEL_BYTES))
            name = _class(content, field, f"{member.name} in {path}")
            if class_of.setdefault(key, name) != name:
                raise failures.BadInput(
                    f"{path} says that {key!r} is {class_of[key]!r} and {name!r}; give each "
                    "example one class."
                )
    if lacking := [key for key in pictures if key not in class_of]:
        raise failures.BadInput(
            f"{path} has {pictures[lacking[0]].name} and no {lacking[0]}.{suffix}"
            f"{f' (and {len(lacking) - 1} more)' if len(lacking) > 1 else ''}; give each picture "
            "its class, or set Tars.label to the suffix of its member."
        )
    labels = [class_of[key] for key in pictures]
    if len({*map(type, labels)}) > 1:
        raise failures.BadInput(
            f"{path} has numbers and texts as classes; give each picture one kind."
        )
    digest.update(repr(labels).encode())
    return _Index(
        reader.storage,
        np.array([member.offset for member in pictures.values()], np.int64),
        np.array([member.size for member in pictures.values()], np.int64),
        np.array(labels) if labels else np.zeros(0, np.int64),
        digest.hexdigest(),
    )


def _class(content: bytes, field: str, name: str) -> int | str:
    """The class that a member says."""
    value: typing.Any
    try:
        text = content.decode().strip()
        if field:
            value = files.parsed(text)[field]
        else:
            value = int(text) if text.lstrip("-").isdecimal() else text
    except (ValueError, LookupError, TypeError) as error:
        raise failures.BadInput(
            f"{name} tells no class ({failures.first_line(error)[:80]}); correct it, or Tars.label."
        ) from None
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise failures.BadInput(
            f"{name} tells the class {value!r}; give a number or a text, or correct Tars.label."
        )
    return value
