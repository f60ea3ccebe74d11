"""A file is replaced as one, durably, or stays as it was."""

import errno
import os
import pathlib
import re
import subprocess
import sys

import pytest
from etils import epath
from support import fake_buckets

from nest_dist.base import failures, files


@pytest.fixture
def path(tmp_path):
    """A file with content."""
    path = tmp_path / "notes.txt"
    path.write_text("old")
    return path


def test_the_file_is_synced_before_and_its_folder_after_it_gets_its_name(path, monkeypatch):
    synced = []

    def record(descriptor):
        name = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        synced.append((name, path.read_text()))

    monkeypatch.setattr(os, "fsync", record)
    files.write_durably(path, lambda new: new.write_text("new"))
    new_name = f".notes.txt.{os.getpid()}.new"
    assert synced == [(new_name, "old"), (path.parent.name, "new")]
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_file_as_it_was_and_no_other(path):
    def fail(new):
        new.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"):
        files.write_durably(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_process_leaves_the_file_as_it_was_and_a_leftover(path):
    program = (
        "import os, pathlib, sys; from nest_dist.base import files;"
        "files.write_durably(pathlib.Path(sys.argv[1]), lambda new: os._exit(new.write_text('x')))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, path])
    assert process.wait() == 1
    assert path.read_text() == "old"
    (leftover,) = files.leftovers(path)
    assert leftover.name == f".notes.txt.{process.pid}.new"
    assert files.leftovers(path.with_name("*")) == [leftover]
    files.remove_leftovers(path.with_name("other.txt"))
    assert leftover.exists()
    files.remove_leftovers(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_disk_without_syncing_is_no_error_and_one_that_fails_is(path, monkeypatch, code, fails):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    if fails:
        with pytest.raises(OSError, match="Input/output error"):
            files.write_durably(path, lambda new: new.write_text("new"))
    else:
        files.write_durably(path, lambda new: new.write_text("new"))
    assert path.read_text() == ("old" if fails else "new")
    assert list(path.parent.iterdir()) == [path]


def test_an_object_of_a_bucket_is_replaced(tmp_path, monkeypatch):
    with fake_buckets.Buckets(tmp_path / "buckets") as buckets:
        for name, value in buckets.environment.items():
            monkeypatch.setenv(name, value)
        folder = buckets.folder / "mine"
        folder.mkdir()
        (folder / "notes.txt").write_text("old")
        files.write_durably(epath.Path("gs://mine/notes.txt"), lambda new: new.write_text("new"))
        assert buckets.names("mine") == ["notes.txt"]
        assert (folder / "notes.txt").read_text() == "new"


def test_one_of_two_that_write_one_output_is_refused(path):
    for output in (path, path.parent):
        with files.claimed(output):
            text = f"another command is writing to {output}; wait for its end"
            with pytest.raises(failures.BadInput, match=text), files.claimed(output):
                pass
        with files.claimed(output):  # given back
            pass
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_that_was_removed_while_it_was_opened_is_taken_anew(path, monkeypatch):
    plain, locked = files.fcntl.flock, []

    def flock(lock, how):
        plain(lock, how)
        if not locked:
            pathlib.Path(lock.name).unlink()
        locked.append(lock.name)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.claimed(path):
        assert len(locked) == 2
        assert pathlib.Path(locked[1]).exists()


def test_a_folder_is_made_with_all_its_names_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path / "a", tmp_path]
    files.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def failing(errors):
    """Raises these errors, one a call, then returns "done"."""
    left = list(errors)

    def action():
        if left:
            raise left.pop(0)
        return "done"

    return action


def test_trouble_of_the_storage_is_tried_again(monkeypatch):
    monkeypatch.setattr(files, "PAUSES_SECONDS", (0.0, 0.0))
    trouble = OSError(errno.ESTALE, "stale"), ConnectionError("reset")
    assert files.again(failing(trouble)) == "done"
    with pytest.raises(OSError, match="stale"):
        files.again(failing([trouble[0]] * 3))


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "forbidden"),
        FileNotFoundError(errno.ENOENT, "absent"),
        FileExistsError(errno.EEXIST, "there"),
        OSError(errno.EROFS, "read-only"),
        failures.BadInput("wrong"),
    ],
)
def test_what_a_repetition_does_not_change_is_not_repeated(error):
    with pytest.raises(type(error)):
        files.again(failing([error]))


def test_trouble_of_the_storage_is_one_line_and_75_wherever_it_comes_from():
    error = OSError(errno.ESTALE, "Stale file handle", "/run/config.gin")
    known = failures.known(error)
    assert known.exit_code == 75
    assert "'/run/config.gin'; start the same command again" in str(known)
    full = OSError(errno.ENOSPC, "No space left on device", "/run/config.gin")
    assert failures.known(full).exit_code == 2
    assert "'/run/config.gin'; make room there, or let the user" in str(failures.known(full))
    many = OSError(errno.EMFILE, "Too many open files", "/run/config.gin")
    assert "; raise the limit of open files (ulimit -Hn)." in str(failures.known(many))
    unknown = OSError(errno.EXDEV, "Invalid cross-device link", "/run/config.gin")
    assert failures.known(unknown) is unknown


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/a"),
            *(2, "No such file or directory: '/run/a'; correct the path, or bring back what"),
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory"),
            *(2, "the working folder of this program is gone; change to one that is there."),
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), 2, "'/a/b'; correct the"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "Broken pipe; let what reads the output"),
        (FileNotFoundError("bucket/absent"), 2, "bucket/absent; correct the path, or bring back"),
        (MemoryError("of 3 GiB"), 1, r"do not suffice \(of 3 GiB\); raise its limits \(ulimit -v"),
        (RuntimeError("can't start new thread"), 1, "or the threads of this user do not suffice"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, code, text):
    known = failures.known(error)
    assert isinstance(known, failures.Failure)
    assert known.exit_code == code
    assert re.search(text, str(known))
    assert len(str(known).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000])
def test_what_is_no_json_is_a_value_error(text):
    assert files.parsed('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match=r"line 1|decode|levels"):
        files.parsed(text)
