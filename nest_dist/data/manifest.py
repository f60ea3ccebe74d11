"""What `nest-dist prepare` says about a split that it has written: manifest.json in its folder."""

import dataclasses
import hashlib
import json
import pathlib
import typing

from nest_dist.base import checks, failures, files

NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        name: in the folder of the manifest.
        records: how many it has.
        bytes: its size.
        sha256: of its records, each after its length: the same whatever wrote the file.
    """

    name: str
    records: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        checks.types(self)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A split.

    Attributes:
        classes: how many pictures each class has, in the order of labels.
        source: "format", "name" and "fingerprint" of what it was made from.
        plan: the digest of everything that decides what is written.
        shards: its files.
    """

    classes: dict[str, int]
    source: dict[str, str]
    plan: str
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        checks.types(self)

    def __len__(self) -> int:
        return sum(shard.records for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """The digest of the names of the classes and all records."""
        content = [list(self.classes), [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes the manifest of a split whose files are all there."""
    text = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "examples": len(manifest),
            "fingerprint": manifest.fingerprint,
            **dataclasses.asdict(manifest),
        },
        indent=1,
    )
    files.write_whole(folder / NAME, lambda path: path.write_text(text + "\n"))


def read(folder: typing.Any) -> Manifest:
    """The manifest of a split.

    Args:
        folder: a path with `/` and `read_text`, local or remote.
    Raises:
        BadInput: if there is none, it is newer than this program, or was altered.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise failures.BadInput(
            f"{path} cannot be read ({failures.first_line(error)}); give the --output of "
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
        found = Manifest(content["classes"], content["source"], content["plan"], shards)
        intact = content["fingerprint"] == found.fingerprint and content["examples"] == len(
            found
        ) == sum(found.classes.values())
    except (TypeError, LookupError, ValueError):
        intact = False
    if not intact:
        raise failures.BadInput(
            f"{path} was altered: its parts do not fit each other; copy it anew, or run "
            "`nest-dist prepare` again."
        )
    return found
