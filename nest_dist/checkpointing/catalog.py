"""The folders of a run's checkpoints: names, completeness, metadata; no arrays."""

import contextlib
import functools
import glob
import hashlib
import json
import math
import os
import re
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from nest_dist.base import failures, files, ranking

Metadata = dict[str, typing.Any]  # JSON

# Version 1 stored the configuration as gin, version 2 the digests of all files.
FORMAT_VERSION = 3
METADATA, EVALUATION = "metadata.json", "evaluation.json"
STATE = "state"  # the folder of the arrays
# The checksum of METADATA: `cd FOLDER && sha256sum --check metadata.sha256`.
MARKER = "metadata.sha256"
_STEP = re.compile(r"0|[1-9]\d*", re.ASCII)
# Folders that are not complete yet, or no longer.
_SAVING, _REMOVING = ".saving", ".removing"
_LEFTOVER = re.compile(r"\d+\.(saving.*|removing)", re.ASCII)
_QUARANTINED = ".damaged"  # a number may follow


class Corrupt(failures.Failure, ValueError):
    """A checkpoint has changed since it was saved; an older one may be complete."""

    def __init__(self, name: int | str, problem: str) -> None:
        super().__init__(f"checkpoint {name} is corrupt ({problem})")
        self.problem = problem


class Path(type(epath.Path("/"))):  # type: ignore[misc]
    """A path whose patterns are right below folders with brackets in their names."""

    def glob(self, pattern: str) -> Iterator["Path"]:
        escaped = type(self)(glob.escape(os.fspath(self)))
        return super(Path, escaped).glob(pattern)


class Catalog:
    """The entries of WORKDIR/checkpoints; only steps whose folder has a `MARKER` are complete."""

    def __init__(self, directory: epath.PathLike) -> None:
        """Opens the folder, which may be missing; also gs://."""
        self.directory: epath.Path = Path(directory)
        self.in_bucket = "://" in os.fspath(directory)
        self.notes: list[str] = []

    def names(self) -> list[str]:
        listed = files.patiently(self.directory, lambda: list(self.directory.iterdir()))
        return sorted(path.name for path in listed or [])

    def folders(self) -> list[int]:
        """The steps of all folders that are named by one, ascending."""
        paths = [self.directory / name for name in self.names() if _STEP.fullmatch(name)]
        status = {int(path.name): files.patiently(path, path.stat) for path in paths}
        return sorted(step for step, it in status.items() if it is not None and it.is_directory)

    def steps(self) -> list[int]:
        return [step for step in self.folders() if self.is_complete(step)]

    def quarantined(self) -> list[str]:
        return [name for name in self.names() if _QUARANTINED in name]

    def unfinished(self) -> list[str]:
        """Names of folders that are being saved or removed, or that a killed run has left so."""
        return [
            name
            for name in self.names()
            if _LEFTOVER.fullmatch(name)
            or (self.in_bucket and _STEP.fullmatch(name) and self._is_begun(int(name)))
        ]

    def is_complete(self, step: int) -> bool:
        """Whether the checkpoint counts; its content may have changed since."""
        return self._read(step, MARKER) is not None

    def is_removed(self, step: int) -> bool:
        """Whether a run has removed the checkpoint, or begun to."""
        return not (self.is_complete(step) if self.in_bucket else self.folder(step).exists())

    def folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def pending(self, step: int) -> epath.Path:
        """Where a step is saved; a bucket cannot rename, there the marker alone tells."""
        return self.folder(step) if self.in_bucket else self.directory / f"{step}{_SAVING}"

    def complete(self, step: int, metadata: Metadata) -> None:
        """Makes a checkpoint of the pending folder of a step, whose other files are durable."""
        pending, folder = self.pending(step), self.folder(step)
        text = json.dumps({"format_version": FORMAT_VERSION, "step": step, **metadata}, indent=1)
        marker = f"{hashlib.sha256(text.encode()).hexdigest()}  {METADATA}\n"
        for name, content in ((METADATA, text), (MARKER, marker)):
            files.again(functools.partial(files.write_text_durably, pending / name, content))
        if pending != folder:
            if os.path.lexists(folder):
                self.quarantine(step, f"{folder} was in the way of a checkpoint")
            files.again(lambda: pending.rename(folder))
            files.sync(self.directory)

    def metadata(self, step: int) -> Metadata:
        """The JSON of a checkpoint.

        Raises:
            BadInput: if it has another format, or another step than its folder.
            Corrupt: if it is missing or has changed.
            Unavailable: if the storage does not answer.
        """
        folder = self.folder(step)
        marker, text = self._read(step, MARKER), self._read(step, METADATA)
        if text is None:
            raise Corrupt(step, f"{METADATA} is missing")
        version = _version(text)
        if marker is None and version in (None, FORMAT_VERSION):
            raise Corrupt(step, f"{MARKER} is missing")
        if marker is not None and marker.split()[:1] != [hashlib.sha256(text).hexdigest().encode()]:
            raise Corrupt(step, f"{METADATA} has changed: see {MARKER}")
        if version != FORMAT_VERSION:
            older = (
                "use nest_dist 0.1; or convert the weights with it to timm's or the official "
                "format, and start from those by Run.init_from"
            )
            remedy = older if (version or 0) < FORMAT_VERSION else "use a newer nest_dist"
            raise failures.BadInput(
                f"checkpoint {folder} has format {version}, this program reads "
                f"{FORMAT_VERSION}; {remedy}."
            )
        metadata: Metadata = json.loads(text)
        if missing := sorted({"step", "arrays", "fingerprints"} - metadata.keys()):
            raise Corrupt(step, f"{METADATA} has no {missing[0]}")
        if metadata["step"] != step:
            raise failures.BadInput(
                f"checkpoint {folder} holds step {metadata['step']}; give the folder that name "
                "again, or move it away."
            )
        return metadata

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of an evaluation to those beside a complete checkpoint, durably."""
        text = json.dumps(ranking.without_nan({**(self.evaluation(step) or {}), **metrics}))
        path = self.folder(step) / EVALUATION
        files.again(lambda: files.write_text_durably(path, text))

    def evaluation(self, step: int) -> dict[str, float] | None:
        """The recorded metrics, NaN if not finite; empty before, None if they are corrupt."""
        try:
            metrics = files.parsed(self._read(step, EVALUATION) or b"{}")
            return {name: math.nan if it is None else float(it) for name, it in metrics.items()}
        except (ValueError, TypeError, AttributeError):
            return None

    def quarantine(self, step: int, problem: str) -> str:
        """Renames a folder, so that it is never restored; `notes` says so."""
        name, count = f"{step}{_QUARANTINED}", 1
        while name in self.names():
            count += 1
            name = f"{step}{_QUARANTINED}.{count}"
        folder, target = self.folder(step), self.directory / name
        # Unlike a renaming, this also moves a folder from the lower layer of an overlay.
        move = folder.rename if self.in_bucket else functools.partial(shutil.move, folder)
        if self.attempt(f"{problem}; it stays, since it cannot be moved", lambda: move(target)):
            self.notes.append(f"{problem}; quarantined as {target}")
        return name

    def remove(self, step: int) -> None:
        """Removes a checkpoint; at no moment does it count as a corrupt one."""
        folder = self.folder(step)
        if self.in_bucket:
            (folder / MARKER).unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):  # the lower layer of an overlay
                folder = folder.rename(self.directory / f"{step}{_REMOVING}")
        self.attempt(f"{folder} stays, since it cannot be removed", folder.rmtree)

    def attempt(self, text: str, action: Callable[[], object]) -> bool:
        """Whether `action` succeeded; else `notes` has `text`. For what must not fail a run."""
        try:
            action()
        except Exception as error:  # those of the libraries of buckets are of any class
            self.notes.append(f"{text} ({failures.cause(error)})")
            return False
        return True

    def _is_begun(self, step: int) -> bool:
        return (
            not self.is_complete(step)
            and _version(self._read(step, METADATA)) in (None, FORMAT_VERSION)
            and (self.folder(step) / STATE).exists()
        )

    def _read(self, step: int, name: str) -> bytes | None:
        path = self.folder(step) / name
        return files.patiently(path, path.read_bytes)


def _version(metadata: bytes | None) -> int | None:
    try:
        return int(files.parsed(metadata or b"")["format_version"])
    except (ValueError, KeyError, TypeError):
        return None
