"""ArrayRecord, the production format: many pictures in few files, each found by its number.

`nest-dist prepare` writes FOLDER/SPLIT with shards and a manifest, which this reads.
"""

import dataclasses
import os
import typing
from collections.abc import Sequence

import gin
import grain
from etils import epath

from nest_dist.base import checks, failures
from nest_dist.data import batch, manifest, records


@gin.register
@dataclasses.dataclass(frozen=True)
class ArrayRecord:
    """Pictures that `nest-dist prepare` has written to FOLDER/SPLIT.

    Attributes:
        folder: its --output; local, or remote as far as the array_record library can.
        split: its --split.
    """

    folder: str
    split: str

    def __post_init__(self) -> None:
        checks.types(self)

    def open(self) -> "Records":
        """The files of the split, opened.

        Raises:
            BadInput: if the manifest is missing, newer, or does not fit the files.
        """
        root = epath.Path(self.folder).expanduser() / self.split
        written = manifest.read(root)
        paths = []
        for shard in written.shards:
            path = root / shard.name
            try:
                length = path.stat().length
            except OSError:
                raise failures.BadInput(
                    f"{path} is missing, {manifest.NAME} lists it; run `nest-dist prepare` again."
                ) from None
            if length != shard.bytes:
                raise failures.BadInput(
                    f"{path} has {length} bytes, {manifest.NAME} says {shard.bytes}: it was cut "
                    "short or altered; run `nest-dist prepare` again or copy the file anew."
                )
            paths.append(os.fspath(path))
        return Records(open_files(paths), tuple(written.classes), written.fingerprint)


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Records by number.

    Attributes:
        files: all shards, as one sequence of bytes.
        class_names: the name of each label.
        fingerprint: the digest of all records, from the manifest.
    """

    files: typing.Any
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> batch.Example:
        key, label, picture = records.unpack(read(self.files, index))
        return {"image": picture, "label": label, "key": key}


def open_files(paths: Sequence[str]) -> typing.Any:
    """All records of some ArrayRecord files, in their order.

    Raises:
        BadInput: naming the first file that is damaged.
    """
    try:
        return grain.sources.ArrayRecordDataSource(list(paths))
    except (RuntimeError, ValueError) as error:
        for path in paths:
            try:
                grain.sources.ArrayRecordDataSource([path])
            except (RuntimeError, ValueError) as reason:
                raise failures.BadInput(
                    f"{path} is no whole ArrayRecord file ({failures.first_line(reason)[:120]}); "
                    "it was cut short or altered: make or copy it anew."
                ) from None
        raise failures.BadInput(failures.first_line(error)) from None


def read(files: typing.Any, index: int) -> bytes:
    """One record.

    Raises:
        Unreadable: if its checksum does not fit.
    """
    try:
        return files[index]
    except RuntimeError as error:
        raise batch.Unreadable(failures.first_line(error)[:200]) from None
