"""The folder of a run: the names of its files, and checks that it can be read or written."""

import logging
import os
import pathlib
import secrets
import typing

from etils import epath

from nest_dist.base import failures, files
from nest_dist.config import run_json

CONFIGURATION = "config.gin"
CHECKPOINTS = "checkpoints"
PARAMETERS = "parameters.txt"
GOODPUT = "goodput.json"
# Of buckets that ask for no credentials: gcsfs and TensorStore read these variables.
_EMULATORS = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
_FOLDERS = (CHECKPOINTS, "tensorboard")
_FILES = (
    *(CONFIGURATION, run_json.NAME, PARAMETERS, GOODPUT),
    *("metrics.jsonl", "lease.json"),
)

# A local folder is a pathlib.Path, one in a bucket an epath.Path.
Folder: typing.TypeAlias = typing.Any


def for_writing(name: str | None, flag: str = "--workdir") -> Folder:
    """The folder that a flag names, created if it is missing.

    Raises:
        BadInput: if the flag is missing, or the folder or a file in it cannot be written.
        OSError: if the storage fails.
    """
    path = _given(name, flag)
    probe = path / f".probe-{secrets.token_hex(8)}"

    def write() -> None:
        if isinstance(path, pathlib.Path):
            files.make_folder(path)
        probe.write_text("")
        probe.unlink()

    try:
        files.again(write)
    except FileExistsError:
        raise failures.BadInput(f"{flag} is {path}, which is a file; give a folder.") from None
    except Exception as error:
        if getattr(error, "errno", None) in failures.TROUBLE:
            raise
        raise failures.BadInput(
            f"{flag} is {path}, which cannot be written ({failures.cause(error)}); give a "
            f"folder that the user {os.getuid()} may write."
        ) from None
    if isinstance(path, pathlib.Path):
        for name in (*_FOLDERS, *_FILES):
            part, is_folder = path / name, name in _FOLDERS
            fits = part.is_dir() if is_folder else part.is_file()
            if os.path.lexists(part) and not (fits and os.access(part, os.W_OK)):
                raise failures.BadInput(
                    f"{part} is no {'folder' if is_folder else 'file'} that the user {os.getuid()} "
                    f"may write; move it away, or give another {flag}."
                )
    return path


def for_reading(name: str | None) -> Folder:
    """The folder of a run that has been started.

    Raises:
        BadInput: if the path is missing or no run was started in it.
    """
    path = _given(name)
    try:
        started = (path / CONFIGURATION).exists()
    except Exception as error:
        raise failures.BadInput(
            f"--workdir is {path}, which cannot be read ({failures.cause(error)}); give a "
            f"folder that the user {os.getuid()} may read."
        ) from None
    if not started:
        raise failures.BadInput(
            f"--workdir is {path}, where no run was started (it has no {CONFIGURATION}); give the "
            "folder of a run, or start one with `nest-dist train`."
        )
    if not (path / run_json.NAME).exists():
        raise failures.BadInput(
            f"--workdir is {path}, where nest_dist 0.1 wrote a run (it has no {run_json.NAME}); "
            "use that version, or convert the weights with it to timm's or the official format."
        )
    return path


def _given(name: str | None, flag: str = "--workdir") -> Folder:
    if not name:
        raise failures.BadInput(f"{flag} is not given; give the folder of the run.")
    if "://" not in name:
        path = pathlib.Path(name).expanduser().absolute()
        shown = os.fsencode(path).decode(errors="backslashreplace")
        if "\\" in shown:  # TensorStore would write somewhere else, or not at all
            raise failures.BadInput(
                f"{flag} is {shown}, with a backslash or bytes that are no UTF-8; give a folder "
                "without."
            )
        return path
    if not name.startswith("gs://"):
        raise failures.BadInput(f"{flag} is {name}; give a local folder or gs://BUCKET/FOLDER.")
    if pattern := sorted(set("[]*?") & set(name)):  # fsspec would take it for one, and remove more
        raise failures.BadInput(
            f"{flag} is {name}; give a folder of a bucket without {' '.join(pattern)}."
        )
    _require_buckets(name, flag)
    return epath.Path(name)


def _require_buckets(name: str, flag: str) -> None:
    # google.auth reads it when it is imported, and would else ask for ten seconds where it runs.
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise failures.BadInput(
            f"{flag} is {name}, and {error.name} is not installed; pip install 'nest_dist[gcs]'."
        ) from None
    if not any(name in os.environ for name in _EMULATORS):
        _require_credentials(name, flag)
    # A cached listing would hide files that another host has written since.
    settings: dict[str, typing.Any] = fsspec.config.conf.setdefault("gcs", {})
    settings["use_listings_cache"] = False


def _require_credentials(name: str, flag: str) -> None:
    """Without them, the libraries of buckets would ask again and again before they fail."""
    import google.auth

    logging.getLogger("google.auth").setLevel(logging.ERROR)  # it warns before it raises
    try:
        google.auth.default()
    except google.auth.exceptions.GoogleAuthError as error:
        raise failures.BadInput(
            f"{flag} is {name}, and this host has no credentials for Google Cloud "
            f"({failures.first_line(error).partition('.')[0]}); run `gcloud auth "
            "application-default login`."
        ) from None
