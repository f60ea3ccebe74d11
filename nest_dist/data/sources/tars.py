"""Local tar archives in webdataset's form, whose examples are read by number.

The members of one key, NAME.jpg and NAME.cls, are an example. Each archive is listed once; the list
is kept beside it, or in the user's cache.
"""

import concurrent.futures
import dataclasses
import functools
import glob
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
from nest_dist.data.sources import image_folder, named_splits, tar_archive

INDEX, VERSION = ".index", 1
LONGEST_LABEL_BYTES = 1 << 20
THREADS = 8  # that read indices
HEADER_BYTES = 512  # of a member, before its content


@settings.register
class Tars:
    """A split of a data set in tar archives.

    Attributes:
        files: paths, patterns of paths, or folders. Of a folder those tars are taken whose names
            say the split.
        split: such as "train".
        label: suffix of the members with the class, a number or a text; `json:FIELD` for a field of
            a member in JSON.
        num_classes: of numbers; None for the largest and those below it.
    """

    files: tuple[str, ...] = means(Effect.NONE)
    split: str
    label: str = "cls"
    num_classes: typing.Annotated[int, Within(1)] | None = None

    def open(self) -> "Examples":
        """The examples of all archives; those without an index are listed first.

        Raises:
            BadInput: if a file or split is missing, an archive is corrupt or compressed, or an
                example has no picture, no class, or several.
        """
        paths = self._paths()
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            indices = list(pool.map(functools.partial(_index, label=self.label), paths))
        if not sum(map(len, indices)):
            raise failures.BadInput(
                f"{paths[0]} and others hold no pictures; give tars that do, with members such as "
                f"NAME.jpg and NAME.{self.label}."
            )
        kinds = {index.labels.dtype.kind for index in indices if len(index)}
        if len(kinds) > 1:
            raise failures.BadInput(
                f"{paths[0]} and others have numbers and texts as classes; give tars of one kind."
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
                    f"{paths[0]} and others have label {low if low < 0 else most}, labels are 0 to "
                    f"{count - 1}; correct the label, or Tars.num_classes."
                )
            names = list(classes.numbered(count, f"{paths[0]} and others"))
        digest = hashlib.sha256(repr((names, [index.digest for index in indices])).encode())
        return Examples(
            tuple(paths),
            tuple(map(len, indices)),
            np.concatenate([index.offsets for index in indices]),
            np.concatenate([index.sizes for index in indices]),
            np.concatenate(labels).astype(np.int32),
            tuple(names),
            digest.hexdigest()[:16],
        )

    def _paths(self) -> list[str]:
        found: list[str] = []
        for name in self.files:
            path = pathlib.Path(name).expanduser()
            if path.is_file():
                found.append(str(path))
            elif path.is_dir():
                inside = sorted(each.relative_to(path).as_posix() for each in path.rglob("*.tar"))
                chosen = named_splits.of_split(inside, self.split, name, "tars")
                found += [str(path / each) for each in chosen]
            elif matches := sorted(glob.glob(str(path), recursive=True)):
                found += matches
            else:
                raise failures.BadInput(
                    f"Tars.files has {name!r}, which matches no file ({path.absolute()}); give "
                    "paths, patterns or folders of tars on this machine."
                )
        if not found:
            raise failures.BadInput("Tars.files is empty; give at least one file or folder.")
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(batch.Source):
    """Pictures of archives, each with its label."""

    paths: tuple[str, ...]
    lengths: tuple[int, ...]
    offsets: np.ndarray  # of the bytes of each picture in its archive
    sizes: np.ndarray  # of each picture in bytes
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> batch.Example:
        path = self.paths[int(np.searchsorted(self._ends, index, side="right"))]
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        with open(path, "rb") as file:
            content = os.pread(file.fileno(), HEADER_BYTES + size, offset - HEADER_BYTES)
        header, picture = content[:HEADER_BYTES], content[HEADER_BYTES:]
        name = header[:100].rstrip(b"\0").decode(errors="replace")
        key = f"{posixpath.basename(path)}: {name}"
        if len(picture) < size or _size(header) != size:
            raise failures.BadInput(
                f"{path} has changed since it was listed: it has no member of {size} bytes at byte "
                f"{offset}; start the run again."
            )
        return {"image": picture, "labels": (int(self.labels[index]),), "key": key}

    def known_labels(self) -> np.ndarray | None:
        return self.labels

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)


@dataclasses.dataclass(frozen=True, eq=False)
class _Index:
    """What an archive holds: where each picture lies, and the class of each."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray  # integers or texts
    digest: str  # of the names of all members, and of these

    def __len__(self) -> int:
        return len(self.offsets)


def _index(path: str, label: str) -> _Index:
    """The index of an archive: the one that is kept if it still fits, else made now."""
    status = os.stat(path)
    stamp = json.dumps([VERSION, label, status.st_size, status.st_mtime_ns])
    kept = [pathlib.Path(path + INDEX), _in_cache(path)]
    for file in kept:
        try:
            with np.load(file, allow_pickle=False) as stored:
                if str(stored["stamp"]) == stamp:
                    fields = {name: stored[name] for name in ("offsets", "sizes", "labels")}
                    return _Index(**fields, digest=str(stored["digest"]))
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
            continue  # missing, of another version, or damaged: it is made anew
    index = _listed(pathlib.Path(path), label)
    content = {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}

    def write(new: pathlib.Path) -> None:
        with new.open("wb") as file:
            np.savez(file, stamp=stamp, **content)

    for file in kept:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_durably(file, write)
            return index
        except OSError as error:
            reason = failures.cause(error)
    logging.getLogger(__name__).warning(
        "the index of %s cannot be kept (%s); each start lists it anew", path, reason
    )
    return index


def _in_cache(path: str) -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()
    return pathlib.Path(cache) / "nest_dist" / "tars" / f"{name[:32]}{INDEX}"


def _listed(path: pathlib.Path, label: str) -> _Index:
    """Reads all headers and labels of an archive."""
    suffix, _, field = label.partition(":")
    pictures: dict[str, tar_archive.Member] = {}
    classes: dict[str, int | str] = {}
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for member, refusal in tar_archive.members(path):
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
            elif ending == suffix:
                content = os.pread(
                    file.fileno(), min(member.size, LONGEST_LABEL_BYTES), member.offset
                )
                name = _class(content, field, f"{member.name} in {path}")
                if classes.setdefault(key, name) != name:
                    raise failures.BadInput(
                        f"{path} says that {key!r} is {classes[key]!r} and {name!r}; give each "
                        "example one class."
                    )
    if lacking := [key for key in pictures if key not in classes]:
        raise failures.BadInput(
            f"{path} has {pictures[lacking[0]].name} and no {lacking[0]}.{suffix}"
            f"{f' (and {len(lacking) - 1} more)' if len(lacking) > 1 else ''}; give each picture "
            "its class, or set Tars.label to the suffix of its member."
        )
    labels = [classes[key] for key in pictures]
    if len({*map(type, labels)}) > 1:
        raise failures.BadInput(
            f"{path} has numbers and texts as classes; give each picture one kind."
        )
    digest.update(repr(labels).encode())
    return _Index(
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


def _size(header: bytes) -> int | None:
    """The size of a member by its header, if it is one."""
    try:
        return int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
