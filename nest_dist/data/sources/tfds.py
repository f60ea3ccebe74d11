"""Data sets prepared by TensorFlow Datasets as array records, read without its library."""

import dataclasses
import hashlib
import json
import pathlib
import re
import typing

import gin

from nest_dist.base import checks, failures
from nest_dist.data import batch
from nest_dist.data.sources import array_record, tf_example


@gin.register
@dataclasses.dataclass(frozen=True)
class Tfds:
    """A split that TensorFlow Datasets prepared with `file_format="array_record"`.

    Attributes:
        folder: of one version, such as ~/tensorflow_datasets/imagenet2012/5.1.0, with
            dataset_info.json in it.
        split: such as "train" or "validation".
        image: name of the feature with the encoded picture.
        label: name of the feature with the class.
    """

    folder: str
    split: str
    image: str = "image"
    label: str = "label"

    def __post_init__(self) -> None:
        checks.types(self)

    def open(self) -> "TfdsRecords":
        """The files of the split, opened.

        Raises:
            BadInput: if the folder is none of TensorFlow Datasets, has no such split or feature, or
                a file is missing or damaged.
        """
        root = pathlib.Path(self.folder).expanduser()
        splits = _splits(root)
        checks.one_of("Tfds.split", self.split, splits)
        names = class_names(root, self.label)
        lengths = [int(length) for length in splits[self.split]["shardLengths"]]
        paths = split_files(root, self.split, len(lengths))
        files = array_record.open_files([str(path) for path in paths])
        if len(files) != sum(lengths):
            raise failures.BadInput(
                f"{root} holds {len(files)} examples of {self.split}, dataset_info.json says "
                f"{sum(lengths)}; prepare the data set again."
            )
        digest = hashlib.sha256(repr(names).encode())
        digest.update((root / "dataset_info.json").read_bytes())
        digest.update(repr([path.stat().st_size for path in paths]).encode())
        source = TfdsRecords(files, names, digest.hexdigest()[:16], self)
        source.require_features()
        return source


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """Records by number.

    Attributes:
        files: all shards, as one sequence of bytes.
        class_names: the name of each label.
        fingerprint: of the description and the sizes of all files.
        config: names of the features.
    """

    files: typing.Any
    class_names: tuple[str, ...]
    fingerprint: str
    config: Tfds

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> batch.Example:
        try:
            features = tf_example.parse(array_record.read(self.files, index))
            image, label = features[self.config.image][0], features[self.config.label][0]
        except (ValueError, LookupError) as error:
            raise batch.Unreadable(failures.first_line(error)) from None
        key = features.get("file_name")
        name = bytes(key[0]).decode(errors="replace") if key else f"{self.config.split} {index}"
        return {"image": image, "label": label, "key": name}

    def require_features(self) -> None:
        """Looks for the configured features in the first example.

        Raises:
            BadInput: listing the features there are.
        """
        known = tf_example.parse(array_record.read(self.files, 0))
        checks.one_of("Tfds.image", self.config.image, known)
        checks.one_of("Tfds.label", self.config.label, known)


def split_files(root: pathlib.Path, split: str, count: int) -> list[pathlib.Path]:
    """The array record files of a split, in order.

    Raises:
        BadInput: if some are missing or have another format.
    """
    pattern = re.compile(rf".+-{re.escape(split)}\.array_record-(\d+)-of-\d+")
    found = sorted(path for path in root.iterdir() if pattern.fullmatch(path.name))
    if len(found) != count:
        other = next((path.name for path in root.glob(f"*-{split}.tfrecord-*")), None)
        reason = f"it has {other}" if other else f"it has {len(found)}"
        raise failures.BadInput(
            f"{root} should have {count} array record files of {split}, but {reason}; prepare it "
            'with file_format="array_record", or convert it with `nest-dist prepare`.'
        )
    return found


def class_names(root: pathlib.Path, label: str) -> tuple[str, ...]:
    """The names of the classes of a label feature.

    Raises:
        BadInput: if the feature is no class label.
    """
    path = root / f"{label}.labels.txt"
    if path.is_file():
        return tuple(path.read_text(encoding="utf-8").splitlines())
    try:
        features = json.loads((root / "features.json").read_text(encoding="utf-8"))
        count = int(features["featuresDict"]["features"][label]["classLabel"]["numClasses"])
    except (OSError, ValueError, KeyError):
        raise failures.BadInput(
            f"{root} has neither {label}.labels.txt nor a class label {label!r} in features.json; "
            "set Tfds.label to the feature that holds the class."
        ) from None
    return tuple(str(number) for number in range(count))


def _splits(root: pathlib.Path) -> dict[str, typing.Any]:
    path = root / "dataset_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise failures.BadInput(
            f"{path} cannot be read ({failures.first_line(error)}); set Tfds.folder to the folder "
            "of one version of a prepared data set."
        ) from None
    return {split["name"]: split for split in info["splits"]}
