"""What is written about a run whose folder is in a bucket."""

import os

import pytest
from etils import epath
from support import fake_buckets

from nest_dist.telemetry import desk


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Where objects of gs://mine lie."""
    with fake_buckets.Buckets(tmp_path / "buckets") as buckets:
        for name, value in buckets.environment.items():
            monkeypatch.setenv(name, value)
        (buckets.folder / "mine" / "run").mkdir(parents=True)
        yield buckets.folder / "mine" / "run"


def test_a_local_folder_is_written_as_it_is(tmp_path):
    with desk.Desk(tmp_path, ["metrics.jsonl"]) as opened:
        assert opened.folder == tmp_path
        opened.copy()
    assert list(tmp_path.iterdir()) == []


def test_what_grows_is_brought_and_copied_whole(bucket, monkeypatch):
    monkeypatch.setattr(desk, "COPY_SECONDS", 0.1)
    (bucket / "metrics.jsonl").write_text("first\n")
    (bucket / "other").write_text("stays")
    with desk.Desk(epath.Path("gs://mine/run"), ["metrics.jsonl", "goodput.json"]) as opened:
        assert [path.name for path in opened.folder.iterdir()] == ["metrics.jsonl"]
        with (opened.folder / "metrics.jsonl").open("a") as file:
            file.write("second\n")
        (opened.folder / "tensorboard" / "deep").mkdir(parents=True)
        (opened.folder / "tensorboard" / "deep" / "events").write_bytes(b"\0\r\n\xff" * 1000)
        (opened.folder / "goodput.json.new").write_text("half")
        opened.copy()
        assert (bucket / "metrics.jsonl").read_text() == "first\nsecond\n"
        assert (bucket / "tensorboard" / "deep" / "events").read_bytes() == b"\0\r\n\xff" * 1000
        (opened.folder / "last").write_text("words")
    assert sorted(os.listdir(bucket)) == ["last", "metrics.jsonl", "other", "tensorboard"]
    assert not opened.folder.exists()


def test_a_request_in_the_bucket_is_found_here(bucket):
    (bucket / "profile").touch()
    with desk.Desk(epath.Path("gs://mine/run"), requests=["profile"]) as opened:
        opened.copy()
        assert (opened.folder / "profile").exists()
        assert not (bucket / "profile").exists()


def test_what_is_refused_is_said_and_copied_later(bucket, monkeypatch, capsys):
    there = epath.Path("gs://mine/run")
    with desk.Desk(there) as opened:
        (opened.folder / "metrics.jsonl").write_text("first\n")

        def refuse(*_):
            raise OSError("no network")

        with monkeypatch.context() as patch:
            patch.setattr(type(there), "write_bytes", refuse)
            opened.copy()
        assert "gs://mine/run lags behind: OSError('no network')" in capsys.readouterr().err
    assert (bucket / "metrics.jsonl").read_text() == "first\n"
