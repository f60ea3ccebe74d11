"""The folder of a run: what lies where in it, and whether it can be used."""

import os
import pathlib
import tempfile

from nest_dist.base import failures

CONFIGURATION = "config.gin"
CHECKPOINTS = "checkpoints"
PARAMETERS = "parameters.txt"
GOODPUT = "goodput.json"


def for_writing(name: str | None) -> pathlib.Path:
    """The folder, made where it is missing.

    Raises:
        BadInput: if none is given, it is a file, or it cannot be written.
    """
    path = _given(name)
    try:
        if path.exists() and not path.is_dir():
            raise failures.BadInput(f"--workdir is {path}, which is a file; give a folder.")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise failures.BadInput(
            f"--workdir is {path}, which cannot be written ({error.strerror}); give a folder that "
            f"the user {os.getuid()} may write."
        ) from None
    return path


def for_reading(name: str | None) -> pathlib.Path:
    """The folder of a run that has been started.

    Raises:
        BadInput: if none is given or no run was started in it.
    """
    path = _given(name)
    try:
        started = (path / CONFIGURATION).is_file()
    except OSError as error:
        raise failures.BadInput(
            f"--workdir is {path}, which cannot be read ({error.strerror}); give a folder that the "
            f"user {os.getuid()} may read."
        ) from None
    if not started:
        raise failures.BadInput(
            f"--workdir is {path}, where no run was started (it has no {CONFIGURATION}); give the "
            "folder of a run, or start one with `nest-dist train`."
        )
    return path


def _given(name: str | None) -> pathlib.Path:
    if not name:
        raise failures.BadInput("--workdir is not given; give the folder of the run.")
    return pathlib.Path(name).expanduser().absolute()
