"""Pictures in Parquet, streamed by Hugging Face's library: of the Hub, of a folder, or over http.

A stream has no index. Its files are dealt to a fixed number of virtual shards (`data/blocks`), and
the place in a file is the library's own `state_dict`, which is exact as long as the library itself
neither shuffles nor splits. Code that comes with a data set is never run.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import posixpath
import typing
from collections.abc import Iterator, Sequence

import datasets
import fsspec
import gin
import pyarrow.parquet

from nest_dist.base import checks, failures
from nest_dist.data import batch, blocks
from nest_dist.data.sources import retries

FOOTER_THREADS = 16
FOOTER_BYTES = 1 << 16
EVALUATION_BLOCK = 32
PARQUET_BRANCH = "refs/convert/parquet"


@gin.register
@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A split of a data set of the Hub, or of Parquet files.

    Attributes:
        dataset: the name on the Hub, such as "ILSVRC/imagenet-1k", or a folder; with `files` it
            is "parquet".
        split: such as "train".
        virtual_shards: the fixed number of parts that supply each batch; at most the number of
            files, and a multiple of the processes of every run that shall go on from another.
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
            BadInput: if data set, split, file or column is not there, is no Parquet, or has fewer
                files than virtual shards.
            Unavailable: if the server fails again and again.
        """
        _quiet()
        remote = not self.files or any("://" in name for name in self.files)
        trying = retries.Retries(self.attempts if remote else 1)
        for name in self.files:
            if "://" in name:  # the library says of a server that fails that a file is not there
                trying.run(name, functools.partial(_footer, name))
        builder = trying.run(self.dataset, self._builder)
        checks.one_of("HuggingFace.split", self.split, map(str, builder.config.data_files or ()))
        names = builder.config.data_files[self.split]
        if odd := next((name for name in names if not name.endswith(".parquet")), None):
            raise failures.BadInput(
                f"{odd} is no Parquet file; set HuggingFace.revision to {PARQUET_BRANCH!r}, where "
                "the Hub keeps most data sets as Parquet, or use `nest-dist prepare`."
            )
        with concurrent.futures.ThreadPoolExecutor(FOOTER_THREADS) as pool:
            footers = list(pool.map(lambda name: trying.run(name, lambda: _footer(name)), names))
        if min(footer.rows for footer in footers) == 0:
            empty = next(n for n, footer in zip(names, footers, strict=True) if not footer.rows)
            raise failures.BadInput(f"{empty} has no rows; leave it out of HuggingFace.files.")
        if len(names) < self.virtual_shards:
            raise failures.BadInput(
                f"HuggingFace.virtual_shards is {self.virtual_shards}, {self.split} has "
                f"{len(names)} files; set it to at most that, or make array records by "
                "`nest-dist prepare`, which any number of processes can share."
            )
        return trying.run(self.dataset, lambda: self._stream(builder, footers, trying))

    def _builder(self) -> datasets.DatasetBuilder:
        given = {"data_files": {self.split: list(self.files)}} if self.files else {}
        try:
            return datasets.load_dataset_builder(
                self.dataset, self.subset, revision=self.revision, **given
            )
        except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
            raise failures.BadInput(
                f"there is no data set {self.dataset!r} ({failures.first_line(error)[:200]}); "
                "correct HuggingFace.dataset or .files, and for a private one set HF_TOKEN."
            ) from None
        except (ValueError, RuntimeError) as error:
            raise failures.BadInput(
                f"the data set {self.dataset!r} cannot be streamed "
                f"({failures.first_line(error)[:300]}); correct HuggingFace.subset or .files."
            ) from None

    def _stream(
        self,
        builder: datasets.DatasetBuilder,
        footers: Sequence["_Footer"],
        trying: retries.Retries,
    ) -> "ParquetStream":
        features = builder.as_streaming_dataset(self.split).features
        checks.one_of("HuggingFace.image", self.image, features)
        checks.one_of("HuggingFace.label", self.label, features)
        class_names = self._class_names(features[self.label])
        builder.config.columns = [self.image, self.label]  # the others stay where they are
        rows = builder.as_streaming_dataset(self.split).decode(False)
        digest = hashlib.sha256(repr((footers, features, class_names)).encode()).hexdigest()
        return ParquetStream(
            config=self,
            rows=rows,
            class_names=class_names,
            footers=tuple(footers),
            fingerprint=f"{digest[:16]} in {self.virtual_shards} virtual shards of blocks of "
            f"{self.block}",
            trying=trying,
        )

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
        rows: the library's data set, of which each file is one shard.
        class_names: the name of each label.
        footers: what each file says of itself.
        fingerprint: of the footers and of the way they are dealt.
        trying: how often a reading may fail.
    """

    config: HuggingFace
    rows: datasets.IterableDataset
    class_names: tuple[str, ...]
    footers: tuple["_Footer", ...]
    fingerprint: str
    trying: retries.Retries

    @property
    def shard_lengths(self) -> tuple[int, ...]:
        """Examples of each virtual shard when evaluating."""
        count = self.config.virtual_shards
        return tuple(sum(each.rows for each in self.footers[v::count]) for v in range(count))

    @property
    def shard_bytes(self) -> int:
        """What a virtual shard keeps in memory: a block that is given, and one that is read."""
        size = sum(each.bytes for each in self.footers)
        return 2 * self.config.block * -(-size // len(self))

    def __len__(self) -> int:
        return sum(each.rows for each in self.footers)

    def train(self, shard: int, seed: int, position: batch.Position | None) -> blocks.Blocks:
        """As of `batch.Stream`."""
        config = self.config
        files = len(self.footers)
        shuffled = blocks.Shuffled(self._open, files, config.virtual_shards, config.block, seed)
        return blocks.Blocks(shuffled, shard, position)

    def evaluate(self, shard: int) -> Iterator[batch.Example]:
        """As of `batch.Stream`."""
        for number in range(shard, len(self.footers), self.config.virtual_shards):
            file = self._open(number, None)
            while examples := file.take(EVALUATION_BLOCK):
                yield from examples
            file.close()

    def _open(self, number: int, state: batch.Position | None) -> "_File":
        return _File(self, number, state)


class _File:
    """The rows of one file; what fails is read again from where it was certain."""

    def __init__(self, stream: ParquetStream, number: int, state: batch.Position | None) -> None:
        _quiet()
        self._stream = stream
        self._number = number
        self._name = stream.footers[number].name
        self._restart(state)

    def state(self) -> batch.Position:
        """The library's, of the row that comes next."""
        return self._rows.state_dict()

    def take(self, count: int) -> list[batch.Example]:
        """The next rows."""
        start = self.state()
        first = True

        def read() -> list[dict[str, typing.Any]]:
            nonlocal first
            if not first:
                self._restart(start)
            first = False
            return list(itertools.islice(self._iterator, count))

        return [self._example(row) for row in self._stream.trying.run(self._name, read)]

    def close(self) -> None:
        """Ends the library's generator, before the libraries that it uses end."""
        self._iterator.close()

    def _restart(self, state: batch.Position | None) -> None:
        files = len(self._stream.footers)
        self._rows = self._stream.rows.shard(num_shards=files, index=self._number)
        if state is not None:
            self._rows.load_state_dict(state)
        self._iterator = iter(self._rows)

    def _example(self, row: dict[str, typing.Any]) -> batch.Example:
        config = self._stream.config
        image, key = row[config.image], self._name
        if isinstance(image, dict):
            key = f"{key}: {image.get('path')}"
            image = image.get("bytes")
        if not isinstance(image, bytes):
            image = b""  # as if it were empty: unreadable
        return {"image": image, "label": row[config.label], "key": key}


@dataclasses.dataclass(frozen=True)
class _Footer:
    """The name of a Parquet file, and what its end says: rows, and bytes once decompressed."""

    name: str
    rows: int
    bytes: int


def _footer(address: str) -> _Footer:
    with fsspec.open(address, "rb", block_size=FOOTER_BYTES) as file:
        found = pyarrow.parquet.read_metadata(file)
    size = sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))
    return _Footer(posixpath.basename(address), found.num_rows, size)


def _quiet() -> None:
    """Leaves repeating and its delays to us."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    for reading in ("OPEN", "READ"):
        setattr(datasets.config, f"STREAMING_{reading}_MAX_RETRIES", 1)
    for name in dir(datasets.config):
        if name.startswith("STREAMING_") and name.endswith("_RETRY_INTERVAL"):
            setattr(datasets.config, name, 0)
