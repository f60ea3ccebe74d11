import dataclasses
import errno
import os
import pickle
import re
import resource
import shutil
import time

import numpy as np
import pytest
from support import datasets, photographs
from support.refusals import refusal

from nest_dist.base import failures
from nest_dist.data import batch
from nest_dist.data.sources import (
    array_record,
    digits,
    image_folder,
    retries,
    synthetic,
    tf_example,
    tfds,
)
from nest_dist.data.transforms import decode


@pytest.fixture(params=["array_record", "image_folder", "tfds", "idx", "digits", "synthetic"])
def source(request, tmp_path):
    return datasets.opened(request.param, tmp_path)


def test_every_source_gives_examples_that_decode_with_labels_in_range(source):
    assert len(source) > 0
    for index in range(min(len(source), 12)):
        example = source[index]
        image = decode.pixels(example["image"])
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert 0 <= example["labels"][0] < len(source.class_names)


def test_every_source_survives_the_way_to_a_worker_process(source):
    other = pickle.loads(pickle.dumps(source))
    assert other.fingerprint == source.fingerprint
    assert other.class_names == source.class_names
    for index in (0, len(source) - 1):
        np.testing.assert_array_equal(
            decode.pixels(other[index]["image"]), decode.pixels(source[index]["image"])
        )


@pytest.mark.parametrize("name", ["array_record", "image_folder", "tfds", "idx"])
def test_the_fingerprint_tells_other_content_apart(name, tmp_path):
    first = datasets.opened(name, tmp_path / "a")
    same = datasets.opened(name, tmp_path / "b")
    other = datasets.opened(name, tmp_path / "c", pictures_each=3)
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != other.fingerprint


def test_sources_agree_about_the_same_pictures(tmp_path):
    contents = []
    for name in ("array_record", "image_folder", "tfds"):
        source = datasets.opened(name, tmp_path / name)
        examples = [source[index] for index in range(len(source))]
        contents.append(
            sorted((bytes(example["image"]), example["labels"][0]) for example in examples)
        )
        assert source.class_names == datasets.CLASSES
    assert contents[0] == contents[1] == contents[2]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(failures.BadInput, match=r"is no folder; .*give the folder that holds"):
        image_folder.ImageFolder(str(tmp_path / "none"), "train").open()


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(failures.BadInput, match=r"holds no pictures \(.bmp, .gif, "):
        image_folder.ImageFolder(str(tmp_path), "train").open()
    (tmp_path / "train" / "1.jpg").write_bytes(b"")
    with pytest.raises(failures.BadInput, match="has no subfolders, ImageFolder needs one"):
        image_folder.ImageFolder(str(tmp_path), "train").open()


def test_class_folders_deeper_down_are_offered(tmp_path):
    for split in ("train", "val"):
        datasets.image_folder(tmp_path / "in", split=split)
    text = f"deeper down, in train, val; give the folder of one split, such as {tmp_path}/in/val."
    with refusal(text):
        image_folder.ImageFolder(str(tmp_path / "in"), "").open()


def test_links_that_lead_to_each_other_repeat_no_picture(tmp_path):
    datasets.image_folder(tmp_path)
    root = tmp_path / "train"
    for here, there in (("rocket", "coffee"), ("coffee", "chelsea"), ("chelsea", "rocket")):
        (root / here / "next").symlink_to(f"../{there}")
    listing = image_folder.listed(root)
    assert {name for name, reason in listing.passed_over if "a link to" in reason} == {
        f"{name}/next/next/next" for name in datasets.CLASSES
    }
    source = image_folder.ImageFolder(str(tmp_path), "train").open()
    assert len(source) == len(datasets.pictures())


def test_what_a_folder_passes_over_is_said_with_its_number(tmp_path, caplog):
    datasets.image_folder(tmp_path)
    root = tmp_path / "train"
    picture = (root / "rocket" / "000.jpg").read_bytes()
    read = ("coffee/a.jfif", "coffee/a.JPE", "coffee/a.jif", os.fsdecode(b"coffee/\xe9.png"))
    passed_over = {
        "dog": "a class folder without pictures",
        "coffee/more/1.jpg": "it lies in no class folder",
        "1.jpg": "it lies in no class folder",
        ".1.jpg": "it is hidden",
        "rocket/._000.jpg": "a file of macOS beside another",
        "rocket/notes.txt": "no picture by its name",
        "rocket/gone.jpg": "a dangling link",
        "rocket/pipe.jpg": "no file",
        ".git": "it is hidden",
        "__MACOSX": "it is hidden",
        "rocket/up": "a link to a folder above it",
        "rocket/self.jpg": "a dangling link",
        "self": "no picture by its name",
    }
    for folder in ("dog", "coffee/more", ".git", "__MACOSX"):
        (root / folder).mkdir()
    for name in (*read, *(name for name in passed_over if "." in name)):
        if not (root / name).exists():
            (root / name).write_bytes(picture)
    for name in ("rocket/gone.jpg", "rocket/pipe.jpg", "rocket/self.jpg"):
        (root / name).unlink()
    for name in ("rocket/self.jpg", "self"):
        (root / name).symlink_to(root / name)
    (root / "rocket/gone.jpg").symlink_to("/nowhere/1.jpg")
    os.mkfifo(root / "rocket/pipe.jpg")
    (root / "rocket/up").symlink_to("..")
    source = image_folder.ImageFolder(str(tmp_path), "train").open()
    assert source.class_names == ("chelsea", "coffee", "dog", "rocket")
    names = {entry.name for entry, _ in source.entries}
    assert names == {name for name, _, _ in datasets.pictures()} | set(read)
    assert "train: 13 entries are passed over, such as dog: a class folder" in caplog.text
    listing = image_folder.listed(root)
    chosen = image_folder.by_folder(listing.pictures, listing.folders)
    assert dict(listing.passed_over + chosen.passed_over) == passed_over


def test_the_same_pictures_have_the_same_fingerprint_elsewhere_and_no_others(tmp_path):
    for name in ("image_folder", "tfds"):
        first = datasets.opened(name, tmp_path / name)
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name, copy_function=shutil.copyfile)
        config = first.config if name == "tfds" else image_folder.ImageFolder("", "train")
        moved = dataclasses.replace(config, folder=str(tmp_path / "moved" / name))
        assert moved.open().fingerprint == first.fingerprint
        file = max((tmp_path / "moved" / name).rglob("*.*"), key=lambda path: path.stat().st_size)
        content, stamp = bytearray(file.read_bytes()), file.stat().st_mtime_ns
        content[len(content) // 3] ^= 1
        file.write_bytes(bytes(content))
        os.utime(file, ns=(stamp, stamp))
        assert moved.open().fingerprint != first.fingerprint


@pytest.mark.parametrize("at", [0, -1])
def test_of_large_folders_the_fingerprint_covers_samples(at, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "SAMPLED_ABOVE_BYTES", 0)
    monkeypatch.setattr(image_folder, "SAMPLE_BYTES", 16)
    source = datasets.opened("image_folder", tmp_path)
    file = max(tmp_path.rglob("*.*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(bytes(content))
    other = dataclasses.replace(source)
    assert other.fingerprint == dataclasses.replace(source).fingerprint
    content[at] ^= 1
    file.write_bytes(bytes(content))
    assert source.fingerprint != other.fingerprint


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between attempts, which take no time."""
    taken = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


class Troubled:
    """A source that fails some times before it gives its example."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def __getitem__(self, index):
        if self.errors:
            raise self.errors.pop(0)
        return {"image": b"", "labels": (0,)}


TROUBLE = [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOENT]


@pytest.mark.parametrize("code", TROUBLE)
def test_trouble_of_the_system_is_tried_again_and_then_ends_with_75(code, pauses):
    error = OSError(code, os.strerror(code), "a/1.jpg")
    assert retries.example(Troubled(error, error), 3)["labels"] == (0,)
    assert pauses == [0.5, 1.0]
    reason = "no such file" if code == errno.ENOENT else error.strerror
    text = re.escape(f"a/1.jpg could not be read in 8 attempts in a row ({reason}); when")
    with pytest.raises(failures.Unavailable, match=text) as ended:
        retries.example(Troubled(*[error] * 8), 3)
    assert ended.value.exit_code == 75


@pytest.mark.parametrize("code", [errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_may_not_be_read_ends_with_2(code, pauses):
    error = OSError(code, os.strerror(code), "a/1.jpg")
    text = rf"a/1.jpg .* may not be read \({os.strerror(code)}"
    with pytest.raises(failures.BadInput, match=text):
        retries.example(Troubled(error), 3)
    assert pauses == []


def test_a_picture_that_is_away_for_a_moment_is_read(tmp_path, monkeypatch):
    source = datasets.opened("image_folder", tmp_path)
    path = tmp_path / "train" / source.entries[0][0].name
    away = path.rename(path.with_suffix(".away"))
    monkeypatch.setattr(time, "sleep", lambda seconds: away.rename(path))
    assert retries.example(source, 0)["image"] == path.read_bytes()


@pytest.mark.parametrize("name", ["array_record", "image_folder", "tfds"])
def test_a_full_table_of_files_is_no_damage(name, tmp_path, monkeypatch):
    source = datasets.opened(name, tmp_path)
    expected = source[11]
    source = pickle.loads(pickle.dumps(source))  # nothing is open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))

    def free(seconds):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(time, "sleep", free)
    opened = [os.dup(2) for _ in range(used)]  # no gaps
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(opened) + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            source[11]
        assert retries.example(source, 11) == expected
    finally:
        free(0)
        for descriptor in opened:
            os.close(descriptor)


@pytest.mark.parametrize("splits", ["null", '[{"name": "train", "shardLengths": ["x"]}]', "[{}]"])
def test_a_description_of_tfds_that_is_none_is_refused(splits, tmp_path):
    (tmp_path / "dataset_info.json").write_text(f'{{"splits": {splits}}}')
    with pytest.raises(
        failures.BadInput, match=r"dataset_info.json cannot be read .* set Tfds.fold"
    ):
        tfds.Tfds(str(tmp_path), "train").open()


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(failures.BadInput, match=r"manifest.json cannot be read .* give the"):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_newer_manifest_is_refused(tmp_path):
    datasets.array_record(tmp_path)
    path = tmp_path / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(failures.BadInput, match="has format 3, this program reads up to 2; use"):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_truncated_record_file_is_refused(tmp_path):
    datasets.array_record(tmp_path)
    path = next((tmp_path / "train").glob("*.array_record"))
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    with pytest.raises(
        failures.BadInput,
        match=f"has {len(content) - 1000} bytes, manifest.json says {len(content)}",
    ):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_missing_record_file_is_refused(tmp_path):
    datasets.array_record(tmp_path)
    next((tmp_path / "train").glob("*.array_record")).unlink()
    with pytest.raises(failures.BadInput, match=r"is missing, manifest.json lists it; run"):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_record_file_of_other_content_is_refused_when_it_is_read(tmp_path):
    datasets.array_record(tmp_path)
    path = next((tmp_path / "train").glob("*.array_record"))
    source = array_record.ArrayRecord(str(tmp_path), "train").open()
    size = path.stat().st_size
    array_record.write(path, [array_record.pack("one", (0,), b"picture")])
    for content, texts in (
        (bytes(size), ("array_record is no complete ArrayRecord file (", "copy it anew")),
        (path.read_bytes(), ("it has 1 records, not 6", "; it was cut short or altered")),
    ):
        path.write_bytes(content)
        with refusal(*texts):
            retries.example(pickle.loads(pickle.dumps(source)), 6 * int(path.name[0]))


def test_a_flipped_bit_makes_one_record_corrupt(tmp_path):
    source = datasets.opened("array_record", tmp_path)
    path = next((tmp_path / "train").glob("*.array_record"))
    content = bytearray(path.read_bytes())
    at = bytes(content).index(photographs.jpeg("coffee", 60, 80)[:64]) + 40
    content[at] ^= 1
    path.write_bytes(content)
    altered = array_record.ArrayRecord(str(tmp_path), "train").open()
    reasons = []
    for index in range(len(source)):
        try:
            altered[index]
        except batch.Corrupt as reason:
            reasons.append(str(reason))
    assert len(reasons) == 1
    assert "hash mismatch" in reasons[0]


def test_records_return_what_was_packed():
    for labels in ((70000,), (), (2, 5, 2**32 - 1)):
        key, unpacked, picture = array_record.unpack(
            array_record.pack("ä/ß.jpg", labels, b"picture")
        )
        assert (key, unpacked, bytes(picture)) == ("ä/ß.jpg", labels, b"picture")


def test_records_of_version_0_1_are_read():
    key, labels, picture = array_record.unpack(
        b"NDR1" + b"\5\0" + b"\7\0\0\0" + b"a.jpg" + b"picture"
    )
    assert (key, labels, bytes(picture)) == ("a.jpg", (7,), b"picture")


def test_records_that_were_not_packed_are_corrupt():
    with pytest.raises(batch.Corrupt, match="the record starts with b'abcd', not with b'NDR2'"):
        array_record.unpack(b"abcdefghijklmnop")
    with pytest.raises(batch.Corrupt, match="announces 4000000000 labels and has 16 bytes"):
        array_record.unpack(
            array_record.HEADER.pack(array_record.MAGIC, 0, 4_000_000_000) + b"abcdef"
        )


def test_tfds_data_of_another_format_is_refused(tmp_path):
    datasets.tfds(tmp_path)
    for path in tmp_path.glob("*.array_record-*"):
        path.rename(tmp_path / path.name.replace("array_record", "tfrecord"))
    with pytest.raises(failures.BadInput, match=r"but it has .*tfrecord.* or convert it"):
        tfds.Tfds(str(tmp_path), "train").open()


def test_an_unknown_tfds_split_or_feature_lists_what_there_is(tmp_path):
    datasets.tfds(tmp_path)
    with pytest.raises(failures.BadInput, match=r"Tfds.split is 'trian'.*did you mean train"):
        tfds.Tfds(str(tmp_path), "trian").open()
    with pytest.raises(failures.BadInput, match=r"Tfds.image is 'img'.*did you mean image"):
        tfds.Tfds(str(tmp_path), "train", image="img").open()
    with pytest.raises(failures.BadInput, match=r"set Tfds.label to the feature that holds"):
        tfds.Tfds(str(tmp_path), "train", label="file_name").open()
    with pytest.raises(failures.BadInput, match=r"dataset_info.json cannot be read .*set Tfds"):
        tfds.Tfds(str(tmp_path / "none"), "train").open()


@pytest.mark.parametrize("packed", [True, False])
def test_every_kind_of_feature_is_read(packed):
    features = {"image": [b"ab", b""], "label": [-3, 2**40, 7], "box": [0.5, -1.25]}
    record = datasets.tf_example(features, packed)
    values = tf_example.parse(record)
    assert values["image"] == features["image"]
    assert values["label"] == features["label"]
    assert values["box"] == features["box"]


@pytest.mark.parametrize("record", [b"\xff\xd8\xff\xe0", b"\x0a\x7fabc", b"\x0b"])
def test_other_bytes_are_no_example(record):
    with pytest.raises(ValueError, match=r"is no tf.train.Example"):
        tf_example.parse(record)


def test_digits_have_two_splits_without_overlap():
    train, test = (digits.Digits(split).open() for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)


def test_synthetic_pictures_differ_and_labels_take_turns():
    source = synthetic.Synthetic(num_examples=5, image_side=8, num_classes=3).open()
    assert [source[index]["labels"][0] for index in range(5)] == [0, 1, 2, 0, 1]
    assert (source[0]["image"] != source[1]["image"]).any()
    with pytest.raises(failures.BadInput, match=r"Synthetic.num_examples is 0; it must be"):
        synthetic.Synthetic(num_examples=0, image_side=8, num_classes=3)
