"""Folders of runs in buckets, where they cannot be used."""

import sys

import pytest
from support import fake_buckets

from nest_dist.base import failures
from nest_dist.commands import workdirs


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    with fake_buckets.Buckets(tmp_path / "buckets") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_folder_in_a_bucket_is_probed_and_left_empty(buckets):
    (buckets.folder / "mine").mkdir()
    assert str(workdirs.for_writing("gs://mine/a/b")) == "gs://mine/a/b"
    assert buckets.names("mine") == []
    with pytest.raises(failures.BadInput, match="gs://mine/a/b, where no run was started"):
        workdirs.for_reading("gs://mine/a/b")


def test_a_bucket_that_is_not_there_is_named(buckets):
    with pytest.raises(failures.BadInput, match=r"gs://none/a, which cannot be written \(.*none"):
        workdirs.for_writing("gs://none/a")


def test_other_storage_is_refused():
    text = "--workdir is s3://mine/a; give a local folder or gs://BUCKET/FOLDER"
    with pytest.raises(failures.BadInput, match=text):
        workdirs.for_writing("s3://mine/a")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    text = r"gs://mine/a, and gcsfs is not installed; pip install 'nest_dist\[gcs\]'"
    with pytest.raises(failures.BadInput, match=text):
        workdirs.for_writing("gs://mine/a")
