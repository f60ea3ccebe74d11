"""Files about a run whose folder is in a bucket."""

import os

from etils import epath

from nest_dist.telemetry import staging


def test_a_local_folder_needs_no_staging(tmp_path):
    with staging.StagingFolder(tmp_path, ["metrics.jsonl"]) as opened:
        assert opened.folder == tmp_path
        opened.copy()
    assert list(tmp_path.iterdir()) == []


def test_growing_files_are_fetched_and_copied(bucket, monkeypatch):
    monkeypatch.setattr(staging, "COPY_SECONDS", 0.1)
    (bucket / "metrics.jsonl").write_text("first\n")
    (bucket / "other").write_text("stays")
    with staging.StagingFolder(
        epath.Path("gs://mine/run"), ["metrics.jsonl", "goodput.json"]
    ) as opened:
        assert [path.name for path in opened.folder.iterdir()] == ["metrics.jsonl"]
        with (opened.folder / "metrics.jsonl").open("a") as file:
            file.write("second\n")
        (opened.folder / "tensorboard" / "deep").mkdir(parents=True)
        (opened.folder / "tensorboard" / "deep" / "events").write_bytes(b"\0\r\n\xff" * 1000)
        (opened.folder / ".goodput.json.7.new").write_text("half")
        opened.copy()
        assert (bucket / "metrics.jsonl").read_text() == "first\nsecond\n"
        assert (bucket / "tensorboard" / "deep" / "events").read_bytes() == b"\0\r\n\xff" * 1000
        (opened.folder / "last").write_text("words")
    assert sorted(os.listdir(bucket)) == ["last", "metrics.jsonl", "other", "tensorboard"]
    assert not opened.folder.exists()


def test_a_request_in_the_bucket_is_moved_here(bucket):
    (bucket / "profile").touch()
    with staging.StagingFolder(epath.Path("gs://mine/run"), requests=["profile"]) as opened:
        opened.copy()
        assert (opened.folder / "profile").exists()
        assert not (bucket / "profile").exists()


def test_a_file_that_the_network_refuses_is_reported_and_copied_later(bucket, monkeypatch, capsys):
    workdir = epath.Path("gs://mine/run")
    with staging.StagingFolder(workdir) as opened:
        (opened.folder / "metrics.jsonl").write_text("first\n")

        def refuse(*_):
            raise OSError("no network")

        with monkeypatch.context() as patch:
            patch.setattr(type(workdir), "write_bytes", refuse)
            opened.copy()
        assert "gs://mine/run lags behind: OSError('no network')" in capsys.readouterr().err
    assert (bucket / "metrics.jsonl").read_text() == "first\n"
