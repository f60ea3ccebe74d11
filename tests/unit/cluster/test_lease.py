"""One run in one workdir."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
from etils import epath
from support import harness

from nest_dist.base import failures
from nest_dist.cluster import lease

# Holds the lease of a folder until its stdin is closed.
HOLDER = """
import sys
from nest_dist.cluster import lease
with lease.Lease(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STILL_SECONDS", 0.5)
    monkeypatch.setattr(lease, "DYING_SECONDS", 0.2)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """A workdir, and where its lease lies."""
    if request.param == "bucket":
        objects = request.getfixturevalue("bucket")
        return epath.Path("gs://mine/run"), objects / lease.NAME
    (tmp_path / "run").mkdir()
    return tmp_path / "run", tmp_path / "run" / lease.NAME


def holder(folder):
    process = harness.Process(
        [sys.executable, "-c", HOLDER, folder],
        environment=harness.environment(PYTHONPATH=harness.module_path()),
        stdin=subprocess.PIPE,
    )
    harness.wait_until(lambda: "held" in process.said() or not process.running(), process.said)
    return process


def another(path, **fields):
    """The record of a run on another host."""
    record = {"run": "other", "host": "far", "kernel": "far", "process": 7, "beat": 3, **fields}
    path.write_text(json.dumps(record))


def test_a_second_run_is_refused_in_one_line_that_names_the_first(place):
    folder, _ = place
    with lease.Lease(folder) as first:
        text = rf"--workdir is {folder}, which is in use by process \d+ on {socket.gethostname()};"
        with pytest.raises(failures.BadInput, match=text), lease.Lease(folder):
            pass
        first.require_held()
    with lease.Lease(folder) as later:  # given back
        later.require_held()


@pytest.mark.medium
def test_the_lease_of_a_killed_run_on_this_host_is_taken_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STILL_SECONDS", 1e6)
    with holder(tmp_path) as first:
        with pytest.raises(failures.BadInput, match=f"in use by process {first.pid} on"):
            lease.Lease(tmp_path).__enter__()
        first.kill()
        first.wait()
    with lease.Lease(tmp_path) as second:
        second.require_held()


def test_the_lease_of_another_host_is_taken_over_when_it_stands_still(place, capsys):
    folder, path = place
    another(path)
    with lease.Lease(folder) as taken:
        taken.require_held()
        assert f"{folder} was used by process 7 on far; waiting" in capsys.readouterr().out


def test_the_lease_of_another_host_that_beats_is_refused(place):
    folder, path = place
    another(path)
    beats = iter(range(4, 1000))

    def sleep(_):
        another(path, beat=next(beats))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease.time, "sleep", sleep)
        with pytest.raises(failures.BadInput, match="in use by process 7 on far"):
            lease.Lease(folder).__enter__()


def replaced(*_):
    raise FileExistsError


def test_of_two_that_take_over_an_object_one_is_refused(bucket):
    folder, path = epath.Path("gs://mine/run"), bucket / lease.NAME
    another(path)
    first, second = lease.Lease(folder), lease.Lease(folder)
    assert first._store.read() == second._store.read()
    first._store.write({"run": "first"})
    with pytest.raises(FileExistsError):
        second._store.write({"run": "second"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease._Object, "write", replaced)
        with pytest.raises(failures.Unavailable, match="was taken by another run a moment ago"):
            second.__enter__()


def test_a_holder_that_has_lost_its_lease_may_not_write(place):
    folder, path = place
    with lease.Lease(folder) as held:
        another(path)
        with pytest.raises(lease.Lost, match=f"{folder} was taken over by process 7 on far, sin"):
            held.require_held()
        harness.wait_until(lambda: "far" in path.read_text(), "the beat left it alone")
    assert "far" in path.read_text()  # it is not given back either


@pytest.mark.parametrize("lost", ["removed", "renamed", "replaced"])
def test_a_folder_that_is_gone_is_noticed(lost, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with lease.Lease(folder) as held:
        held.require_held()
        if lost == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "other")
        if lost == "replaced":
            folder.mkdir()
        with pytest.raises(lease.Lost, match=f"{folder} has lost its lease.json: it was removed"):
            held.require_held()
    assert lost == "replaced" or not folder.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 100])
def test_what_a_power_cut_leaves_of_a_record_is_no_lease(content, tmp_path):
    (tmp_path / lease.NAME).write_text(content)
    with lease.Lease(tmp_path) as held:
        held.require_held()


def test_a_storage_without_locks_relies_on_the_beat(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lease.fcntl, "flock", refuse)
    with lease.Lease(tmp_path), pytest.raises(failures.BadInput, match="in use by process"):
        lease.Lease(tmp_path).__enter__()


def test_a_lease_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / lease.NAME).mkdir()
    with pytest.raises(failures.BadInput, match=r"lease.json cannot be written \(Is a directory\)"):
        lease.Lease(tmp_path).__enter__()


def test_a_lease_that_is_given_back_leaves_no_file(tmp_path):
    with lease.Lease(tmp_path):
        assert (tmp_path / lease.NAME).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_given_back_while_it_was_opened_is_locked_anew(tmp_path, monkeypatch):
    plain, locked = lease.fcntl.flock, []

    def flock(descriptor, how):
        plain(descriptor, how)
        if not locked:
            (tmp_path / lease.NAME).unlink()
        locked.append(descriptor)

    monkeypatch.setattr(lease.fcntl, "flock", flock)
    with lease.Lease(tmp_path) as held:
        held.require_held()
    assert len(locked) == 2
