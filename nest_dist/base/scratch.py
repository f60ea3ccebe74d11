"""Folders of a process, in the temporary folder of this host or beside what they become."""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import tempfile

_MARK = "scratch_"


class Scratch:
    """A folder that is locked by its process; `remove_leftovers` spares it as long as that lives.

    Attributes:
        folder: empty at first.
    """

    def __init__(self, beside: pathlib.Path | None = None) -> None:
        """Makes the folder: a hidden one beside a path, or one in the temporary folder."""
        parent, prefix = _home(beside)
        made = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        # The lock falls with this process, however that ends.
        self._lock = os.open(made, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Only now may another process look whether its owner lives.
        self.folder = made.rename(parent / f"{prefix}{_MARK}{made.name.removeprefix(prefix)}")

    def remove(self) -> None:
        """Removes the folder with all that it contains."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def remove_leftovers(beside: pathlib.Path | None = None) -> None:
    """Removes the folders that killed processes have left; `beside` as of `Scratch`."""
    parent, prefix = _home(beside)
    for folder in parent.glob(f"{glob.escape(prefix)}{_MARK}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _home(beside: pathlib.Path | None) -> tuple[pathlib.Path, str]:
    """The folder of the folders, and how their names begin."""
    if beside is None:
        return pathlib.Path(tempfile.gettempdir()), "nest_dist_"
    return beside.parent, f".{beside.name}."
