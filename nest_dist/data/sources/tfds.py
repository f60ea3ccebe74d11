"""Data sets prepared by TensorFlow Datasets as array records, read without its library."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from nest_dist.base import checks, failures, files, settings
from nest_dist.data import batch, classes
from nest_dist.data.sources import all_labels, array_record, tf_example

SAMPLES, SAMPLE_BYTES = 256, 1 << 12


@settings.register
class Tfds:
    """A split that TensorFlow Datasets prepared with `file_format="array_record"`.

    Attributes:
        folder: of one version, with dataset_info.json in it, such as
            ~/tensorflow_datasets/imagenet2012/5.1.0.
        split: such as "train" or "validation".
        image: name of the feature with the encoded picture.
        label: name of the feature with the class.
    """

    folder: str
    split: str
    image: str = "image"
    label: str = "label"

    def open(self) -> "TfdsRecords":
        """The open files of the split.

        Raises:
            BadInput: if the folder is none of TensorFlow Datasets, has no such split or feature, or
                a file is missing or corrupt.
        """
        root = pathlib.Path(self.folder).expanduser()
        splits = _shard_lengths(root)
        checks.one_of("Tfds.split", self.split, splits)
        names = _class_names(root, self.label)
        lengths = splits[self.split]
        paths = _split_files(root, self.split, len(lengths))
        records = array_record.open_files([str(path) for path in paths])
        if len(records) != sum(lengths):
            raise failures.BadInput(
                f"{root} holds {len(records)} examples of {self.split}, dataset_info.json says "
                f"{sum(lengths)}; prepare the data set again."
            )
        digest = hashlib.sha256(repr((names, self.image, self.label)).encode())
        digest.update((root / "dataset_info.json").read_bytes())
        for path in paths:
            _sample(path, digest.update)
        known = tf_example.parse(records[0])
        checks.one_of("Tfds.image", self.image, known)
        checks.one_of("Tfds.label", self.label, known)
        return TfdsRecords(records, names, digest.hexdigest()[:16], self)


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords(batch.Source):
    """Records by index."""

    files: Sequence[bytes]  # the records of all shards, in order
    class_names: tuple[str, ...]
    fingerprint: str
    config: Tfds

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> batch.Example:
        record = self.files[index]
        try:
            features = tf_example.parse(record)
            image, label = features[self.config.image][0], features[self.config.label][0]
        except (ValueError, LookupError) as error:
            raise batch.Corrupt(failures.first_line(error)) from None
        names = features.get("file_name")
        key = names[0].decode(errors="replace") if names else f"{self.config.split} {index}"
        return {"image": image, "labels": (label,), "key": key}

    def read_labels(self) -> np.ndarray | None:
        """As of `Source`."""
        return all_labels.read_once(self)


def _split_files(root: pathlib.Path, split: str, count: int) -> list[pathlib.Path]:
    """The array record files of a split, in order."""
    pattern = re.compile(rf".+-{re.escape(split)}\.array_record-(\d+)-of-\d+")
    paths = sorted(path for path in root.iterdir() if pattern.fullmatch(path.name))
    if len(paths) != count:
        other = next((path.name for path in root.glob(f"*-{split}.tfrecord-*")), None)
        reason = f"it has {other}" if other else f"it has {len(paths)}"
        raise failures.BadInput(
            f"{root} should have {count} array record files of {split}, but {reason}; prepare it "
            'with file_format="array_record", or convert it with `nest-dist prepare`.'
        )
    return paths


def _class_names(root: pathlib.Path, label: str) -> tuple[str, ...]:
    """The names of the classes of a label feature."""
    path = root / f"{label}.labels.txt"
    if path.is_file():
        return tuple(path.read_text(encoding="utf-8").splitlines())
    try:
        features = files.parsed((root / "features.json").read_bytes())
        count = int(features["featuresDict"]["features"][label]["classLabel"]["numClasses"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        failures.raise_trouble(error)
        raise failures.BadInput(
            f"{root} has neither {label}.labels.txt nor a class label {label!r} in features.json; "
            "set Tfds.label to the feature that holds the class."
        ) from None
    return classes.numbered(count, f"{label!r} of {root}")


def _sample(path: pathlib.Path, update: Callable[[bytes], object]) -> None:
    """Updates a digest with a file of up to 1 MiB, or with samples from all over a larger one."""
    size = path.stat().st_size
    update(repr(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(max(number * SAMPLE_BYTES, number * size // SAMPLES))
            update(file.read(SAMPLE_BYTES))


def _shard_lengths(root: pathlib.Path) -> dict[str, list[int]]:
    """The numbers of examples in the shards of each split."""
    path = root / "dataset_info.json"
    try:
        splits = files.parsed(path.read_bytes())["splits"]
        return {it["name"]: [int(each) for each in it.get("shardLengths", ())] for it in splits}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        failures.raise_trouble(error)
        raise failures.BadInput(
            f"{files.absolute(path)} cannot be read ({failures.cause(error)}); set Tfds.folder to "
            "the folder of one version of a prepared data set."
        ) from None
