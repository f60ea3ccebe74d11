import pickle

import numpy as np
import pytest
from support import datasets, photographs

from nest_dist.base import failures
from nest_dist.data import batch, decode, records
from nest_dist.data.sources import array_record, digits, image_folder, synthetic, tf_example, tfds


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
        assert 0 <= example["label"] < len(source.class_names)


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
        contents.append(sorted((bytes(each["image"]), each["label"]) for each in examples))
        assert source.class_names == datasets.CLASSES
    assert contents[0] == contents[1] == contents[2]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(failures.BadInput, match="is no folder; give the folder that holds"):
        image_folder.ImageFolder(str(tmp_path / "none"), "train").open()


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(failures.BadInput, match="has no subfolders, ImageFolder needs one"):
        image_folder.ImageFolder(str(tmp_path), "train").open()


def test_an_empty_class_is_refused(tmp_path):
    datasets.image_folder(tmp_path)
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(failures.BadInput, match=r"class 'dog' of .* has no pictures"):
        image_folder.ImageFolder(str(tmp_path), "train").open()


def test_a_file_that_has_gone_is_unreadable(tmp_path):
    source = datasets.opened("image_folder", tmp_path)
    (tmp_path / "train" / source.entries[0][0]).unlink()
    with pytest.raises(batch.Unreadable, match="No such file"):
        source[0]


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(failures.BadInput, match=r"manifest.json cannot be read .* give the"):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_newer_manifest_is_refused(tmp_path):
    datasets.array_record(tmp_path)
    path = tmp_path / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(failures.BadInput, match="has format 2, this program reads up to 1; use"):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_truncated_record_file_is_refused(tmp_path):
    datasets.array_record(tmp_path)
    path = next((tmp_path / "train").glob("*.array_record"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(
        failures.BadInput, match=f"has {len(whole) - 1000} bytes, manifest.json says {len(whole)}"
    ):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_missing_record_file_is_refused(tmp_path):
    datasets.array_record(tmp_path)
    next((tmp_path / "train").glob("*.array_record")).unlink()
    with pytest.raises(failures.BadInput, match=r"is missing, manifest.json lists it; run"):
        array_record.ArrayRecord(str(tmp_path), "train").open()


def test_a_flipped_bit_makes_one_record_unreadable(tmp_path):
    source = datasets.opened("array_record", tmp_path)
    path = next((tmp_path / "train").glob("*.array_record"))
    content = bytearray(path.read_bytes())
    at = bytes(content).index(photographs.jpeg("coffee", 60, 80)[:64]) + 40
    content[at] ^= 1
    path.write_bytes(content)
    damaged = array_record.ArrayRecord(str(tmp_path), "train").open()
    unreadable = []
    for index in range(len(source)):
        try:
            damaged[index]
        except batch.Unreadable as reason:
            unreadable.append(str(reason))
    assert len(unreadable) == 1
    assert "hash mismatch" in unreadable[0]


def test_records_return_what_was_packed():
    record = records.pack("ä/ß.jpg", 70000, b"picture")
    key, label, picture = records.unpack(record)
    assert (key, label, bytes(picture)) == ("ä/ß.jpg", 70000, b"picture")
    with pytest.raises(batch.Unreadable, match="the record starts with b'abcd', not with b'NDR1'"):
        records.unpack(b"abcdefghijklmnop")


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
    found = tf_example.parse(record)
    assert [bytes(each) for each in found["image"]] == features["image"]
    assert found["label"] == features["label"]
    assert found["box"] == features["box"]


@pytest.mark.parametrize("record", [b"\xff\xd8\xff\xe0", b"\x0a\x7fabc", b"\x0b"])
def test_other_bytes_are_no_example(record):
    with pytest.raises(ValueError, match=r"is no tf.train.Example"):
        tf_example.parse(record)


def test_digits_have_two_splits_without_overlap():
    train, test = (digits.Digits(split).open() for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)


def test_synthetic_pictures_differ_and_labels_take_turns():
    source = synthetic.Synthetic(num_examples=5, image_side=8, num_classes=3).open()
    assert [source[index]["label"] for index in range(5)] == [0, 1, 2, 0, 1]
    assert (source[0]["image"] != source[1]["image"]).any()
    with pytest.raises(failures.BadInput, match=r"Synthetic.num_examples is 0; it must be"):
        synthetic.Synthetic(num_examples=0, image_side=8, num_classes=3)
