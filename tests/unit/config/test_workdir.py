"""Folders of runs in buckets, where they cannot be used."""

import os
import pathlib
import sys

import pytest
from etils import epath
from support import fake_buckets

from nest_dist.base import failures
from nest_dist.config import workdir
from nest_dist.experiment import run as runs


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    with fake_buckets.Buckets(tmp_path / "buckets") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_folder_in_a_bucket_is_probed_and_left_empty(buckets):
    (buckets.folder / "mine").mkdir()
    assert str(workdir.for_writing("gs://mine/a/b")) == "gs://mine/a/b"
    assert buckets.names("mine") == []
    with pytest.raises(failures.BadInput, match="gs://mine/a/b, where no run was started"):
        workdir.for_reading("gs://mine/a/b")


def test_a_bucket_that_is_not_there_is_named(buckets):
    with pytest.raises(failures.BadInput, match=r"gs://none/a, which cannot be written \(.*none"):
        workdir.for_writing("gs://none/a")


def test_a_bucket_without_credentials_is_refused_at_once(tmp_path, monkeypatch):
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    text = r"gs://mine/a, and this host has no credentials .*; run `gcloud auth application-default"
    with pytest.raises(failures.BadInput, match=text):
        workdir.for_writing("gs://mine/a")


def test_other_storage_is_refused():
    text = "--workdir is s3://mine/a; give a local folder or gs://BUCKET/FOLDER"
    with pytest.raises(failures.BadInput, match=text):
        workdir.for_writing("s3://mine/a")


def test_a_bucket_takes_no_patterns(tmp_path):
    text = r"--workdir is gs://mine/lr\[1\]; give a folder of a bucket without \[ \]"
    with pytest.raises(failures.BadInput, match=text):
        workdir.for_writing("gs://mine/lr[1]")
    assert workdir.for_writing(str(tmp_path / "lr[1]*?")).is_dir()


@pytest.mark.parametrize("name", [b"a\\b", b"caf\xe9/run"])
def test_a_name_that_tensorstore_does_not_take_is_refused(name, tmp_path):
    with pytest.raises(failures.BadInput, match="with a backslash or bytes that are no UTF-8; gi"):
        workdir.for_writing(str(tmp_path / os.fsdecode(name)))
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    text = r"gs://mine/a, and gcsfs is not installed; pip install 'nest_dist\[gcs\]'"
    with pytest.raises(failures.BadInput, match=text):
        workdir.for_writing("gs://mine/a")


def test_a_run_of_an_earlier_version_is_refused_in_a_line(tmp_path):
    (tmp_path / "config.gin").write_text("Run.keep = @Keep()\n")
    text = r"where nest_dist 0\.1 wrote a run \(it has no run\.json\); use that version, or convert"
    with pytest.raises(failures.BadInput, match=text):
        workdir.for_reading(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "folder") for name in workdir._FOLDERS] + [(name, "file") for name in workdir._FILES],
)
def test_another_thing_in_the_place_of_a_part_is_named(name, kind, tmp_path):
    make = {"file": pathlib.Path.mkdir, "folder": pathlib.Path.touch}[kind]
    for how in (make, os.mkfifo):
        how(tmp_path / name)
        text = f"{tmp_path}/{name} is no {kind} that the user {os.getuid()} may write; move it aw"
        with pytest.raises(failures.BadInput, match=text):
            workdir.for_writing(str(tmp_path))
        os.rmdir(tmp_path / name) if (tmp_path / name).is_dir() else os.unlink(tmp_path / name)
    assert workdir.for_writing(str(tmp_path)) == tmp_path


def test_a_part_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: "checkpoints" not in str(path))
    with pytest.raises(failures.BadInput, match="checkpoints is no folder that the user"):
        workdir.for_writing(str(tmp_path))


def test_a_gin_file_in_a_bucket_is_read(buckets):
    (buckets.folder / "mine").mkdir()
    path = "gs://mine/run.gin"
    epath.Path(path).write_text("include 'runs/quickstart.gin'\nRun.num_epochs = 3.0\n")
    assert runs.load([path], []).num_epochs == 3
