"""Small data sets in every format, made of real photographs."""

import hashlib
import json
import pathlib
import struct
import typing
from collections.abc import Mapping, Sequence

import numpy as np
from support import photographs

from nest_dist.data import manifest
from nest_dist.data.sources import array_record as array_records
from nest_dist.data.sources import digits, synthetic
from nest_dist.data.sources import idx as idx_files
from nest_dist.data.sources import image_folder as folders
from nest_dist.data.sources import tfds as tensorflow_datasets
from nest_dist.data.transforms import decode

CLASSES = ("chelsea", "coffee", "rocket")


def pictures(pictures_each: int = 4) -> list[tuple[str, int, bytes]]:
    """Names, labels and JPEGs: different rectangles of three photographs."""
    entries = []
    for label, name in enumerate(CLASSES):
        photograph = photographs.photograph(name)
        H, W, _ = photograph.shape
        for number in range(pictures_each):
            top, left = 7 * number % (H - 60), 11 * number % (W - 80)
            cut = photograph[top : top + 60, left : left + 80].copy()
            entries.append((f"{name}/{number:03d}.jpg", label, decode.encode(cut, "jpeg")))
    return entries


def opened(name: str, root: pathlib.Path, pictures_each: int = 4) -> typing.Any:
    """One of the sources, made in `root` if it needs files."""
    if name == "digits":
        return digits.Digits("test", image_side=8).open()
    if name == "synthetic":
        return synthetic.Synthetic(num_examples=24, image_side=64, num_classes=3).open()
    root.mkdir(parents=True, exist_ok=True)
    if name == "image_folder":
        image_folder(root, pictures_each)
        return folders.ImageFolder(str(root), "train").open()
    if name == "array_record":
        array_record(root, pictures_each)
        return array_records.ArrayRecord(str(root), "train").open()
    if name == "idx":
        idx(root, pictures_each)
        return idx_files.Idx(str(root), "train", CLASSES).open()
    tfds(root, pictures_each)
    return tensorflow_datasets.Tfds(str(root), "train").open()


def image_folder(root: pathlib.Path, pictures_each: int = 4, split: str = "train") -> None:
    for name, _, picture in pictures(pictures_each):
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)


def array_record(root: pathlib.Path, pictures_each: int = 4, split: str = "train") -> None:
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    everything = pictures(pictures_each)
    shards = []
    for number in range(2):
        path = folder / f"{number}.array_record"
        packed = [
            array_records.pack(name, (label,), picture)
            for name, label, picture in everything[number::2]
        ]
        array_records.write(path, packed)
        digest = hashlib.sha256(repr(packed).encode()).hexdigest()
        shards.append(manifest.Shard(path.name, len(packed), path.stat().st_size, digest))
    counts = dict.fromkeys(CLASSES, pictures_each)
    manifest.write(folder, manifest.Manifest(counts, {}, "", tuple(shards)))


def idx(root: pathlib.Path, pictures_each: int = 4) -> None:
    """Grey, 28 x 28."""
    everything = pictures(pictures_each)
    images = [decode.pixels(picture)[:28, :28, 1] for _, _, picture in everything]
    labels = np.array([label for _, label, _ in everything], np.uint8)
    (root / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.stack(images)))
    (root / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of a uint8 array."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def tfds(root: pathlib.Path, pictures_each: int = 4, split: str = "train") -> None:
    everything = pictures(pictures_each)
    lengths = []
    for number in range(2):
        shard = everything[number::2]
        lengths.append(str(len(shard)))
        array_records.write(
            root / f"photos-{split}.array_record-{number:05d}-of-00002",
            [
                tf_example({"image": [image], "label": [label], "file_name": [name.encode()]})
                for name, label, image in shard
            ],
        )
    info = {"name": "photos", "splits": [{"name": split, "shardLengths": lengths}]}
    (root / "dataset_info.json").write_text(json.dumps(info))
    (root / "features.json").write_text("{}")
    (root / "label.labels.txt").write_text("\n".join(CLASSES) + "\n")


def tf_example(features: Mapping[str, Sequence[typing.Any]], packed: bool = True) -> bytes:
    """A tf.train.Example, written by hand from the description of the format."""

    def varint(value: int) -> bytes:
        value &= (1 << 64) - 1
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def feature(values: Sequence[typing.Any]) -> bytes:
        if isinstance(values[0], bytes):
            return field(1, b"".join(field(1, value) for value in values))
        if isinstance(values[0], float):
            floats = [struct.pack("<f", value) for value in values]
            if packed:
                return field(2, field(1, b"".join(floats)))
            return field(2, b"".join(varint(1 << 3 | 5) + value for value in floats))
        integers = [varint(value) for value in values]
        if packed:
            return field(3, field(1, b"".join(integers)))
        return field(3, b"".join(varint(1 << 3) + value for value in integers))

    entries = [
        field(1, field(1, name.encode()) + field(2, feature(values)))
        for name, values in features.items()
    ]
    return field(1, b"".join(entries))
