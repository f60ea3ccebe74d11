"""Weights and data sets of the Hugging Face Hub: `pip install nest-dist[hub]` and a network."""

import pathlib
import re
import sys
import types

from nest_dist.base import failures

WEIGHTS = "hf:"
DATASETS = "hf://datasets/"
CONVERTED = "refs/convert/parquet"  # where the Hub keeps what it made of other formats
KINDS = {".parquet": "Parquet files", ".tar": "tars"}  # of the files of data sets
FILES = ("model.safetensors", "pytorch_model.bin")
_ATTRIBUTES = ".gitattributes"  # which the Hub itself puts into a new repository
_LONGEST_NAME = 96
_LONGEST_CAUSE = 200
_REFUSALS = (400, 401, 403, 404, 409, 422)


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


def require_name(repository: str) -> None:
    """Refuses a name that the Hub would not take for a repository."""
    rule = r"(?!.*(--|\.\.))(\w[\w.-]*\w|\w)/(\w[\w.-]*\w|\w)"
    if len(repository) > _LONGEST_NAME or not re.fullmatch(rule, repository, re.ASCII):
        raise failures.BadInput(
            f"{repository} names no repository of the Hugging Face Hub; give OWNER/NAME of "
            f"letters, digits, -, _ and single dots, at most {_LONGEST_NAME} characters."
        )


def require_token(repository: str) -> None:
    """Refuses to go on without a token, by which the Hub knows who publishes."""
    if not _library(repository, "publish there").get_token():
        raise failures.BadInput(
            "this user has no token of the Hugging Face Hub; run `hf auth login`, or set HF_TOKEN "
            "to one that may write, or give --output for a folder."
        )


def publish(repository: str, folder: pathlib.Path, private: bool, replace: bool) -> str:
    """Uploads the files of a folder as one commit: all of them are seen, or none.

    Args:
        repository: OWNER/NAME; made if it does not exist.
        private: whether a new repository is seen by its owner alone.
        replace: adds the commit to a repository that has files.
    Returns:
        The address of the repository.
    Raises:
        BadInput: if the repository has files, or the Hub refuses what is asked.
        Unavailable: if the Hub cannot be reached, or fails on the way.
    """
    library = _library(repository)
    if not sys.stderr.isatty():
        library.utils.disable_progress_bars()
    try:
        api = library.HfApi()
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        files = set(api.list_repo_files(repository)) - {_ATTRIBUTES}
        if files and not replace:
            raise failures.BadInput(
                f"the repository {repository} exists and has {len(files)} files; choose another "
                "name, or give --replace, which keeps them in its history."
            )
        message = "Weights, model card and configuration by nest-dist push"
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except failures.BadInput:
        raise
    except Exception as error:  # from a token that may not write to a cable that was pulled
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if isinstance(error, ValueError) or status in _REFUSALS:
            said = " ".join(str(error).split())
            raise failures.BadInput(
                f"the Hugging Face Hub refuses {repository} ({said[:_LONGEST_CAUSE]}); check the "
                "name, --license, and that the token may write there."
            ) from None
        raise failures.Unavailable(
            f"{repository} was not published ({failures.first_line(error)}): none of its files is "
            "seen; start the same command again."
        ) from None
    return address


def dataset_files(name: str, suffix: str) -> list[tuple[str, str | None]]:
    """The files of a data set: addresses, each with a header that authorizes to read it.

    Args:
        name: hf://datasets/OWNER/NAME[@REVISION][/FOLDER]. Without a revision, a data set that is
            not Parquet is taken from the branch where the Hub has converted it.
        suffix: of the files, one of `KINDS`.
    Raises:
        BadInput: if huggingface_hub is missing, or the data set has no such files.
        Exception: of the library, if the Hub cannot be reached or has no such data set.
    """
    branch = r"refs/[^/]+/[^/]+|[^/]+"
    parts = re.fullmatch(rf"{DATASETS}([^/@]+/[^/@]+)(?:@({branch}))?(?:/(.+))?", name)
    if not parts:
        raise failures.BadInput(f"{name} is no data set; write {DATASETS}OWNER/NAME.")
    repository, wanted, folder = parts.groups()
    library = _library(name)
    authorization = library.utils.build_hf_headers().get("authorization")
    converted = (CONVERTED,) if suffix == ".parquet" else ()
    for revision in (wanted,) if wanted else (None, *converted):
        try:
            commit = library.HfApi().dataset_info(repository, revision=revision).sha
            files = library.HfApi().list_repo_tree(
                repository, folder, recursive=True, revision=commit, repo_type="dataset"
            )
            paths = sorted(file.path for file in files if file.path.endswith(suffix))
        except library.errors.RevisionNotFoundError:
            paths = []
        if paths:
            at = {"repo_type": "dataset", "revision": commit}
            return [(library.hf_hub_url(repository, path, **at), authorization) for path in paths]
    raise failures.BadInput(
        f"{name} has no {KINDS[suffix]}{', and the Hub has made none of it' if converted else ''}; "
        "use `nest-dist prepare`."
    )


def _library(wanted: str, use: str = "fetch it") -> types.ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        from huggingface_hub.utils import logging
    except ImportError:
        raise failures.BadInput(
            f"{wanted} is on the Hugging Face Hub; to {use}, `pip install nest-dist[hub]`."
        ) from None
    logging.set_verbosity_error()  # it warns at every retry
    return huggingface_hub


def _unreachable(name: str, error: Exception) -> failures.BadInput:
    return failures.BadInput(
        f"{name} cannot be fetched from the Hugging Face Hub ({failures.first_line(error)}); check "
        "name and network, or give a path."
    )
