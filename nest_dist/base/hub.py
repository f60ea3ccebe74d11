"""Weights and data sets of the Hugging Face Hub: `pip install nest-dist[hub]` and a network."""

import pathlib
import re
import types

from nest_dist.base import failures

WEIGHTS = "hf:"
DATASETS = "hf://datasets/"
CONVERTED = "refs/convert/parquet"  # where the Hub keeps what it made of other formats
FILES = ("model.safetensors", "pytorch_model.bin")


def looks_like_id(text: str) -> bool:
    """Whether a text may name a repository: OWNER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


def download(name: str) -> pathlib.Path:
    """Downloads the weight file of a repository, or takes it from the cache of this machine.

    Args:
        name: hf:OWNER/NAME.
    Raises:
        BadInput: if it is another name, huggingface_hub is missing, the Hub cannot be reached, or
            it has no such repository or file.
    """
    repository = name.removeprefix(WEIGHTS)
    if not looks_like_id(repository):
        raise failures.BadInput(f"{name} names no repository; write {WEIGHTS}OWNER/NAME.")
    huggingface_hub = _library(name)
    errors = huggingface_hub.errors
    missing: Exception | None = None
    for file in FILES:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file))
        except errors.EntryNotFoundError as error:
            missing = error  # without a network, the other file may still be in the cache
        except Exception as error:  # anything from a proxy to a missing token
            raise _unreachable(name, error) from None
    if isinstance(missing, errors.LocalEntryNotFoundError):
        raise _unreachable(name, missing)
    raise failures.BadInput(
        f"the repository {repository} has none of {', '.join(FILES)}; give another one."
    )


def dataset_files(name: str) -> list[tuple[str, str | None]]:
    """The Parquet files of a data set: addresses, each with a header that authorizes to read it.

    Args:
        name: hf://datasets/OWNER/NAME[@REVISION][/FOLDER]. Without a revision, a data set that is
            not Parquet is taken from the branch where the Hub has converted it.
    Raises:
        BadInput: if huggingface_hub is missing, or the data set has no Parquet files.
        Exception: of the library, if the Hub cannot be reached or has no such data set.
    """
    branch = r"refs/[^/]+/[^/]+|[^/]+"
    parts = re.fullmatch(rf"{DATASETS}([^/@]+/[^/@]+)(?:@({branch}))?(?:/(.+))?", name)
    if not parts:
        raise failures.BadInput(f"{name} is no data set; write {DATASETS}OWNER/NAME.")
    repository, wanted, folder = parts.groups()
    library = _library(name)
    authorization = library.utils.build_hf_headers().get("authorization")
    for revision in (wanted,) if wanted else (None, CONVERTED):
        try:
            commit = library.HfApi().dataset_info(repository, revision=revision).sha
            files = library.HfApi().list_repo_tree(
                repository, folder, recursive=True, revision=commit, repo_type="dataset"
            )
            paths = sorted(file.path for file in files if file.path.endswith(".parquet"))
        except library.errors.RevisionNotFoundError:
            paths = []
        if paths:
            at = {"repo_type": "dataset", "revision": commit}
            return [(library.hf_hub_url(repository, path, **at), authorization) for path in paths]
    raise failures.BadInput(
        f"{name} has no Parquet files, and the Hub has made none of it; use `nest-dist prepare`."
    )


def _library(wanted: str) -> types.ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        from huggingface_hub.utils import logging
    except ImportError:
        raise failures.BadInput(
            f"{wanted} is on the Hugging Face Hub; to fetch it, `pip install nest-dist[hub]`."
        ) from None
    logging.set_verbosity_error()  # it warns at every retry
    return huggingface_hub


def _unreachable(name: str, error: Exception) -> failures.BadInput:
    return failures.BadInput(
        f"{name} cannot be fetched from the Hugging Face Hub ({failures.first_line(error)}); check "
        "name and network, or give a path."
    )
