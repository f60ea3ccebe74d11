"""Files that outlive a power cut: complete and on the disk before they get their name."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import time
import typing
from collections.abc import Callable, Iterator

from nest_dist.base import failures

# Suffix of files that are being written.
UNFINISHED = ".new"
LOCK = ".lock"
# Pauses before storage that fails is tried again.
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0)
# A path that does not exist, or has another type.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Answers that a repetition does not change.
_FINAL = (*failures.FORBIDDEN, errno.ELOOP, errno.ENAMETOOLONG)

Result = typing.TypeVar("Result")


def write_durably(path: pathlib.Path, writer: Callable[[pathlib.Path], object]) -> None:
    """Lets `writer` make a file beside `path`, syncs it, and renames it to `path`.

    A process that dies before the renaming leaves `path` as it was, and a file .NAME.PROCESS.new. A
    bucket needs no syncing: a written object is durable.

    Args:
        path: also an epath.Path, gs://.
        writer: makes the file at the path that it receives.
    Raises:
        OSError: if the disk is full or the folder cannot be written; `path` is as it was.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        writer(new)
        sync(new)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)  # the name itself; else a power failure may bring the old file back


def write_text_durably(path: pathlib.Path, text: str) -> None:
    """`write_durably` of a text in UTF-8."""
    write_durably(path, lambda new: new.write_bytes(text.encode()))


def parsed(text: str | bytes) -> typing.Any:
    """The value of a JSON text, which may come from anyone.

    Raises:
        ValueError: if it is no JSON, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON of too many levels") from None


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder and its missing parents, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def user_cache(name: str) -> pathlib.Path:
    """A folder of this user on this host: ~/.cache/nest_dist/NAME, or below XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache) / "nest_dist" / name


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
    """Lets one process of this host make a file, while others wait; each may where no lock is."""
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(opened.enter_context(path.with_suffix(LOCK).open("w")), fcntl.LOCK_EX)
        yield


def absolute(path: typing.Any) -> str:
    """The path with all its folders, for messages; that of a bucket as it is."""
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def sync(path: pathlib.Path) -> None:
    """Brings a file, or the names in a folder, to the disk; nothing to do for a bucket."""
    if "://" in os.fspath(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the answer of network disks that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Everything below a folder, what a folder contains before the folder, and `folder` last."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from walk(entry)
        else:
            yield entry
    yield folder


def again(action: Callable[[], Result]) -> Result:
    """What `action` returns; it is repeated after pauses while the storage fails.

    Raises:
        Exception: as `action` does, at once where a repetition does not help.
    """
    for pause in PAUSES_SECONDS:
        try:
            return action()
        except failures.Failure:
            raise
        except Exception as error:  # those of the libraries of buckets are of any class
            final = isinstance(error, (*_ABSENT, FileExistsError))
            if final or getattr(error, "errno", None) in _FINAL:
                raise
            time.sleep(pause)
    return action()


def patiently(path: pathlib.Path, read: Callable[[], Result]) -> Result | None:
    """What `read` returns of `path`; None if the path does not exist or has another type.

    Storage that fails is tried again: an error of the moment says nothing about the content.

    Raises:
        BadInput: if this user may not read it.
        Unavailable: if it still fails after the pauses.
    """
    try:
        return again(read)
    except _ABSENT:
        return None
    except PermissionError as error:
        raise failures.BadInput(
            f"{path} cannot be read ({error.strerror}); let the user {os.getuid()} read it."
        ) from None
    except Exception as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            return None
        raise failures.Unavailable(
            f"{path} cannot be read just now ({failures.cause(error)}); nothing was changed, start "
            "the same command again when the storage answers."
        ) from None


@contextlib.contextmanager
def claimed(output: pathlib.Path) -> Iterator[None]:
    """Keeps other commands from writing the same file, or into the same folder, meanwhile.

    Raises:
        BadInput: if another command does.
    """
    path = output / LOCK if output.is_dir() else output.with_name(f".{output.name}{LOCK}")
    with contextlib.ExitStack() as held:
        if output.is_dir():
            # This lock survives the removal of files; that of the file reaches other hosts.
            folder = os.open(output, os.O_RDONLY)
            held.callback(os.close, folder)
            _lock(folder, output)
        while True:
            with path.open("a") as lock:
                _lock(lock, output)
                # The one before may have removed the file since it was opened.
                if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    try:
                        yield
                    finally:
                        path.unlink(missing_ok=True)
                    return


def _lock(descriptor: int | typing.IO[str], output: pathlib.Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise failures.BadInput(
            f"another command is writing to {output}; wait for its end."
        ) from None


def leftovers(path: pathlib.Path) -> list[pathlib.Path]:
    """Unfinished files of killed processes that were writing `path`; `*` matches any name."""
    return sorted(path.parent.glob(f".{path.name}.[0-9]*"))


def remove_leftovers(path: pathlib.Path) -> None:
    """Removes `leftovers`; only for the one process that writes `path`."""
    for leftover in leftovers(path):
        leftover.unlink()


def output_folder(path: str) -> pathlib.Path:
    """The folder that --output names, made if it is missing.

    Raises:
        BadInput: if it cannot be made.
    """
    folder = pathlib.Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failures.BadInput(
            f"--output is {folder}, which cannot be made ({error.strerror}); give another folder."
        ) from None
    return folder
