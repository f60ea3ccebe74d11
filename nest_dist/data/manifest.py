"""The manifest of a split that `nest-dist prepare` has written: manifest.json in its folder."""

import dataclasses
import hashlib
import json
import pathlib

from nest_dist.base import failures, files, settings
from nest_dist.data import classes

NAME = "manifest.json"
FORMAT_VERSION = 2


@settings.frozen
class Shard:
    """One file of records."""

    name: str  # in the folder of the manifest
    records: int
    bytes: int
    sha256: str  # of its records, each after its length; independent of the program that wrote them


@settings.frozen
class Manifest:
    """A split.

    Attributes:
        classes: the number of pictures of each class, in the order of labels.
        source: "format", "name" and "fingerprint" of the input.
        plan: the digest of everything that decides the bytes of the shards.
        shards: its files.
    """

    classes: dict[str, int]
    source: dict[str, str]
    plan: str
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(shard.records for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """The digest of the names of the classes and all records."""
        content = [list(self.classes), [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes the manifest of a split whose files are complete."""
    text = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "examples": len(manifest),
            "fingerprint": manifest.fingerprint,
            **dataclasses.asdict(manifest),
        },
        indent=1,
    )
    files.write_text_durably(folder / NAME, text + "\n")


def read(folder: pathlib.Path) -> Manifest:
    """The manifest of a split.

    Raises:
        BadInput: if it is missing, newer than this program, or was altered.
    """
    path = folder / NAME
    try:
        content = files.parsed(path.read_bytes())
    except (OSError, ValueError) as error:
        failures.raise_trouble(error)
        there = sorted(other.parent.name for other in folder.parent.glob(f"*/{NAME}"))
        raise failures.BadInput(
            f"{files.absolute(path)} cannot be read ({failures.cause(error)}); "
            f"{classes.other_splits(there)}give the --output of "
            "`nest-dist prepare` as ArrayRecord.folder and its --split as ArrayRecord.split, and "
            "run it to the end."
        ) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise failures.BadInput(
            f"{path} has format {version}, this program reads up to {FORMAT_VERSION}; use a newer "
            "nest_dist."
        )
    try:
        shards = tuple(Shard(**shard) for shard in content["shards"])
        manifest = Manifest(content["classes"], content["source"], content["plan"], shards)
        fitting = content["examples"] == len(manifest)
        intact = fitting and content["fingerprint"] == manifest.fingerprint
    except (TypeError, LookupError, ValueError):
        intact = False
    if not intact:
        raise failures.BadInput(
            f"{path} was altered: its fingerprint or its number of examples does not fit its "
            "shards; copy it anew, or run `nest-dist prepare` again."
        )
    return manifest
