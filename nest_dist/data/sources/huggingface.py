"""Pictures in Parquet, streamed by Hugging Face's library: of the Hub, of a folder, or over http.

A stream has no index. Its files are dealt to a fixed number of virtual shards (`data/blocks`), and
the place in a file is the library's own `state_dict`, which is exact as long as the library itself
neither shuffles nor splits. Code that comes with a data set is never run.
"""

import dataclasses
import functools
import glob
import hashlib
import itertools
import os
import typing
from collections.abc import Iterator

import datasets
import gin

from nest_dist.base import checks, failures
from nest_dist.data import batch, blocks
from nest_dist.data.sources import parquet_files, retries

EVALUATION_BLOCK = 32
QUICK_ATTEMPTS = 3
QUICK_PAUSE_SECONDS = 0.1
PARQUET_BRANCH = "refs/convert/parquet"


@gin.register
@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A split of a data set of the Hub, or of Parquet files.

    Attributes:
        dataset: the name on the Hub, such as "ILSVRC/imagenet-1k", or a folder; with `files` it
            is "parquet".
        split: such as "train".
        virtual_shards: the fixed number of parts that supply each batch, a multiple of the
            processes of every run that shall go on from another. If there are fewer files, several
            shards read the same one, and each keeps its share of the rows.
        files: paths, patterns of paths, or http(s) addresses of Parquet files.
        subset: of a data set that has several; None for its only one.
        revision: branch, tag or commit on the Hub; None for the newest.
        image: column with encoded pictures.
        label: column with class labels, or with integers.
        num_classes: where the column of labels does not name its classes.
        block: examples of a virtual shard that are shuffled together.
        attempts: readings of a block that may fail in a row before the run ends.
    """

    dataset: str
    split: str
    virtual_shards: int
    files: tuple[str, ...] = ()
    subset: str | None = None
    revision: str | None = None
    image: str = "image"
    label: str = "label"
    num_classes: int | None = None
    block: int = 256
    attempts: int = 8

    def __post_init__(self) -> None:
        checks.types(self)
        for name in ("virtual_shards", "block", "attempts"):
            checks.in_range(f"HuggingFace.{name}", getattr(self, name), 1)
        if bool(self.files) != (self.dataset == "parquet"):
            raise failures.BadInput(
                f"HuggingFace.dataset is {self.dataset!r} and HuggingFace.files has "
                f"{len(self.files)} names; give files if and only if the dataset is 'parquet'."
            )

    def open(self) -> "ParquetStream":
        """The stream, once the sizes of all its files are known.

        Raises:
            BadInput: if data set, split, file or column is not there, or is no Parquet.
            Unavailable: if the server fails again and again.
        """
        _quiet()
        trying = retries.Retries(self.attempts)
        names, features = self._local_names(), None
        if not self.files:
            names, features = trying.run(self.dataset, self._resolved)
        if odd := next((name for name in names if not name.endswith(".parquet")), None):
            raise failures.BadInput(
                f"{odd} is no Parquet file; set HuggingFace.revision to {PARQUET_BRANCH!r}, where "
                "the Hub keeps most data sets as Parquet, or use `nest-dist prepare`."
            )
        files = parquet_files.described(names, trying)
        if features is None:
            features = trying.run(names[0], lambda: _rows(names[0], None).features)
        columns = f" There are {', '.join(sorted(features))}."
        checks.one_of("HuggingFace.image", self.image, features, columns)
        checks.one_of("HuggingFace.label", self.label, features, columns)
        class_names = self._class_names(features[self.label])
        digest = hashlib.sha256(repr((class_names, [file.content() for file in files])).encode())
        parts = -(-self.virtual_shards // len(files))
        return ParquetStream(
            config=self,
            pieces=tuple(
                parquet_files.Piece(file, part, parts) for part in range(parts) for file in files
            ),
            class_names=class_names,
            fingerprint=f"{digest.hexdigest()[:16]} in {self.virtual_shards} virtual shards of "
            f"blocks of {self.block}",
        )

    def _local_names(self) -> list[str]:
        names: list[str] = []
        for pattern in self.files:
            found = [pattern]
            if "://" not in pattern:
                found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
            if not found:
                raise failures.BadInput(
                    f"HuggingFace.files has {pattern!r}, where there is no file; give paths, "
                    "patterns of paths or addresses."
                )
            names += found
        return names

    def _resolved(self) -> tuple[list[str], datasets.Features | None]:
        """Addresses of the split's files, and the columns as far as the data set describes them."""
        try:
            builder = datasets.load_dataset_builder(
                self.dataset, self.subset, revision=self.revision
            )
        except FileNotFoundError as error:
            raise failures.BadInput(
                f"there is no data set {self.dataset!r} ({failures.first_line(error)[:200]}); "
                "correct HuggingFace.dataset, and for a private one set HF_TOKEN."
            ) from None
        except (ValueError, RuntimeError) as error:
            raise failures.BadInput(
                f"the data set {self.dataset!r} cannot be streamed "
                f"({failures.first_line(error)[:300]}); correct HuggingFace.dataset or .subset, or "
                f"set HuggingFace.revision to {PARQUET_BRANCH!r}."
            ) from None
        splits = builder.config.data_files or {}
        checks.one_of("HuggingFace.split", self.split, map(str, splits))
        return list(splits[self.split]), builder.info.features

    def _class_names(self, feature: typing.Any) -> tuple[str, ...]:
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        if not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
            raise failures.BadInput(
                f"the column {self.label!r} holds {feature}, no classes; set HuggingFace.label to "
                "a column of class labels or integers."
            )
        if self.num_classes is None:
            raise failures.BadInput(
                f"the column {self.label!r} holds integers without names; set "
                "HuggingFace.num_classes."
            )
        return tuple(str(label) for label in range(self.num_classes))


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetStream:
    """Rows of Parquet files, in virtual shards.

    Attributes:
        config: what was opened.
        pieces: in the order in which they are numbered.
        class_names: the name of each label.
        fingerprint: of all files' sizes, and of the way they are dealt.
    """

    config: HuggingFace
    pieces: tuple[parquet_files.Piece, ...]
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def shard_lengths(self) -> tuple[int, ...]:
        """Examples of each virtual shard when evaluating."""
        count = self.config.virtual_shards
        return tuple(sum(map(len, self.pieces[shard::count])) for shard in range(count))

    @property
    def shard_bytes(self) -> int:
        """What a virtual shard keeps in memory: a block that is given, and one that is read."""
        parts = self.pieces[0].parts
        size = sum(piece.file.bytes for piece in self.pieces) // parts
        return (1 + parts) * self.config.block * -(-size // len(self))

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def train(self, shard: int, seed: int, position: batch.Position | None) -> blocks.Blocks:
        """As of `batch.Stream`."""
        count, block = self.config.virtual_shards, self.config.block
        shuffled = blocks.Shuffled(self._open, len(self.pieces), count, block, seed)
        return blocks.Blocks(shuffled, shard, position)

    def evaluate(self, shard: int) -> Iterator[batch.Example]:
        """As of `batch.Stream`."""
        for number in range(shard, len(self.pieces), self.config.virtual_shards):
            reader = self._open(number, None)
            while examples := reader.take(EVALUATION_BLOCK):
                yield from examples
            reader.close()

    def _open(self, number: int, state: batch.Position | None) -> "_Reader":
        return _Reader(self.pieces[number], state, self.config)


class _Reader:
    """The rows of one piece; what fails is read again from where it was certain."""

    def __init__(
        self, piece: parquet_files.Piece, state: batch.Position | None, config: HuggingFace
    ) -> None:
        _quiet()
        self._piece = piece
        self._name = piece.file.name
        self._config = config
        self._trying = retries.Retries(config.attempts)
        self._trying.run(self._name, lambda: self._begin(state))

    def state(self) -> batch.Position:
        """The library's, of the row that comes next."""
        return self._rows.state_dict()

    def take(self, count: int) -> list[batch.Example]:
        """The next rows."""
        start = self.state()
        is_first = True

        def read() -> list[dict[str, typing.Any]]:
            nonlocal is_first
            if not is_first:
                self._begin(start)
            is_first = False
            return list(itertools.islice(self._iterator, count * self._piece.parts))

        rows = self._trying.run(self._name, read)
        return [self._example(row) for row in rows[self._piece.part :: self._piece.parts]]

    def close(self) -> None:
        """Ends the library's generator, before the libraries that it uses end."""
        self._iterator.close()

    def _begin(self, state: batch.Position | None) -> None:
        self._rows = _rows(self._name, [self._config.image, self._config.label])
        if state is not None:
            self._rows.load_state_dict(state)
        self._iterator = iter(self._rows)

    def _example(self, row: dict[str, typing.Any]) -> batch.Example:
        image, key = row[self._config.image], self._name
        if isinstance(image, dict):
            key = f"{key}: {image.get('path')}"
            image = image.get("bytes")
        if not isinstance(image, bytes):
            image = b""  # as if it were empty: unreadable
        return {"image": image, "label": row[self._config.label], "key": key}


def _rows(name: str, columns: list[str] | None) -> datasets.IterableDataset:
    """The library's stream of one file, with pictures as they are encoded."""
    try:
        return datasets.load_dataset(
            "parquet", data_files={"rows": [name]}, split="rows", streaming=True, columns=columns
        ).decode(False)
    except FileNotFoundError as error:
        if "://" in name:  # the library says this of a server that fails, too
            raise ConnectionError(failures.first_line(error)) from None
        raise


@functools.cache
def _quiet() -> None:
    """Leaves it to us to wait for a server, and to the library to repeat a request at once."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    # A lock that is not there is made for each listing of files and removed after it, by whichever
    # thread comes first.
    datasets.utils.tqdm.get_lock()
    for reading in ("OPEN", "READ"):
        setattr(datasets.config, f"STREAMING_{reading}_MAX_RETRIES", QUICK_ATTEMPTS)
    for name in dir(datasets.config):
        if name.startswith("STREAMING_") and name.endswith("_RETRY_INTERVAL"):
            setattr(datasets.config, name, QUICK_PAUSE_SECONDS)
