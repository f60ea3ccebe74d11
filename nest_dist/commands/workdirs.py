"""The folder of a run: what lies where in it, and whether it can be used."""

import os
import pathlib
import secrets
import typing

from etils import epath

from nest_dist.base import failures

CONFIGURATION = "config.gin"
CHECKPOINTS = "checkpoints"
PARAMETERS = "parameters.txt"
GOODPUT = "goodput.json"

# A local folder is a pathlib.Path, one in a bucket an epath.Path.
Folder: typing.TypeAlias = typing.Any


def for_writing(name: str | None, flag: str = "--workdir") -> Folder:
    """The folder, made where it is missing.

    Args:
        name: as it was given.
        flag: by which.
    Raises:
        BadInput: if none is given, it is a file, or it cannot be written.
    """
    path = _given(name, flag)
    probe = path / f".probe-{secrets.token_hex(8)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except FileExistsError:
        raise failures.BadInput(f"{flag} is {path}, which is a file; give a folder.") from None
    except Exception as error:
        raise failures.BadInput(
            f"{flag} is {path}, which cannot be written ({_cause(error)}); give a folder that "
            f"the user {os.getuid()} may write."
        ) from None
    return path


def for_reading(name: str | None) -> Folder:
    """The folder of a run that has been started.

    Raises:
        BadInput: if none is given or no run was started in it.
    """
    path = _given(name)
    try:
        started = (path / CONFIGURATION).exists()
    except Exception as error:
        raise failures.BadInput(
            f"--workdir is {path}, which cannot be read ({_cause(error)}); give a folder that the "
            f"user {os.getuid()} may read."
        ) from None
    if not started:
        raise failures.BadInput(
            f"--workdir is {path}, where no run was started (it has no {CONFIGURATION}); give the "
            "folder of a run, or start one with `nest-dist train`."
        )
    return path


def _cause(error: Exception) -> str:
    """That of a bucket may be of its library, or of the network's."""
    return getattr(error, "strerror", None) or failures.first_line(error)


def _given(name: str | None, flag: str = "--workdir") -> Folder:
    if not name:
        raise failures.BadInput(f"{flag} is not given; give the folder of the run.")
    if "://" not in name:
        return pathlib.Path(name).expanduser().absolute()
    if not name.startswith("gs://"):
        raise failures.BadInput(f"{flag} is {name}; give a local folder or gs://BUCKET/FOLDER.")
    _require_buckets(name, flag)
    return epath.Path(name)


def _require_buckets(name: str, flag: str) -> None:
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise failures.BadInput(
            f"{flag} is {name}, and {error.name} is not installed; pip install 'nest_dist[gcs]'."
        ) from None
    # What another host has written since must be seen.
    settings: dict[str, typing.Any] = fsspec.config.conf.setdefault("gcs", {})
    settings["use_listings_cache"] = False
