"""Folders of a process in the temporary folder of this host."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile

_PREFIX = "nest_dist_scratch_"


class Scratch:
    """A folder that is locked by its process; `remove_leftovers` spares it as long as that lives.

    Attributes:
        folder: empty at first.
    """

    def __init__(self) -> None:
        made = pathlib.Path(tempfile.mkdtemp(prefix="nest_dist_"))
        # The lock falls with this process, however that ends.
        self._lock = os.open(made, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Only now may another process look whether its owner lives.
        self.folder = made.rename(made.with_name(made.name.replace("nest_dist_", _PREFIX)))

    def remove(self) -> None:
        """Removes the folder with all that it contains."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def remove_leftovers() -> None:
    """Removes the folders that killed processes of this host have left."""
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
