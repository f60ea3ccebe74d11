"""The embedded digits, and IDX files made here."""

import gzip
import resource

import numpy as np
import pytest
from support.datasets import idx_bytes
from support.refusals import refusal

from nest_dist.data.sources import digits, idx


def test_the_digits_are_split_without_overlap():
    train, test = (digits.Digits(split, image_side=8).open() for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    seen = {image.tobytes() for image in train.images}
    # A handful of people wrote the same 8 x 8 picture twice; the split itself repeats none.
    assert sum(image.tobytes() in seen for image in test.images) <= 3
    assert set(np.unique(test.labels)) == set(range(10))


def test_enlarged_digits_keep_their_brightness():
    small, large = (digits.Digits("test", image_side=side).open().images for side in (8, 32))
    assert large.shape == (359, 32, 32, 1)
    assert large.dtype == np.uint8
    assert abs(float(large.mean()) - float(small.mean())) < 3
    assert large.max() == 255


def test_a_fingerprint_tells_splits_apart_and_is_stable():
    train = digits.Digits("train").open()
    assert train.fingerprint == digits.Digits("train").open().fingerprint
    assert train.fingerprint != digits.Digits("test").open().fingerprint


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([1, 0], np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS)))
    return tmp_path


def opened(folder, names=("a", "b")):
    return idx.Idx(str(folder), "train", names).open()


def test_idx_files_are_read_plain_and_compressed(folder):
    source = opened(folder)
    assert len(source) == 2
    np.testing.assert_array_equal(source[1]["image"], IMAGES[1][..., None])
    assert [source[index]["labels"] for index in (0, 1)] == [(1,), (0,)]


def test_a_missing_idx_file_is_named(folder):
    (folder / "train-images-idx3-ubyte").unlink()
    with refusal("train-images-idx3-ubyte(.gz) cannot be read (No such file or directory); set"):
        opened(folder)


def test_a_file_of_another_kind_is_named(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(b"GIF89a")
    with refusal("starts with 47494638, an IDX file of 3 dimensions with 00000803; fetch"):
        opened(folder)


def test_a_truncated_file_is_named(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES)[:-5])
    with refusal("has 19 bytes of data, its header announces 24; fetch the file again"):
        opened(folder)


def test_an_archive_of_more_than_its_header_announces_is_not_unpacked(folder):
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(idx_bytes(LABELS))
        for _ in range(400):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refusal("has more bytes of data, its header announces 2; fetch the file again"):
        opened(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_truncated_archive_is_named(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with refusal("train-labels-idx1-ubyte(.gz) cannot be read (Compressed file ended"):
        opened(folder)


def test_files_of_two_data_sets_are_refused(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES[:1]))
    with refusal("has 1 train images and 2 labels; take both files from the same data set"):
        opened(folder)


def test_a_label_without_a_name_is_refused(folder):
    with refusal("has label 1, but Idx.class_names has 1 names; name every class"):
        opened(folder, names=("a",))
