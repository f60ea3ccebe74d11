"""Weights from the Hugging Face Hub; needs `pip install nest-dist[hub]` and a network."""

import pathlib
import re

from nest_dist.base import failures

FILES = ("model.safetensors", "pytorch_model.bin")


def looks_like_id(where: str) -> bool:
    """Whether a text may name a repository: OWNER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", where) is not None


def download(repository: str) -> pathlib.Path:
    """The file of weights of a repository, from the Hub or from its cache on this machine.

    Raises:
        BadInput: if huggingface_hub is missing, the Hub cannot be reached, or there is no such
            repository or file.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
        from huggingface_hub.utils import logging
    except ImportError:
        raise failures.BadInput(
            f"{repository} is no path here; to look for it on the Hugging Face Hub, "
            "`pip install nest-dist[hub]`."
        ) from None
    logging.set_verbosity_error()  # it tells of every new attempt
    missing: Exception | None = None
    for name in FILES:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, name))
        except errors.EntryNotFoundError as error:
            missing = error  # without a network, the other file may still be in the cache
        except Exception as error:  # anything from a proxy to a missing token
            raise _unreachable(repository, error) from None
    if isinstance(missing, errors.LocalEntryNotFoundError):
        raise _unreachable(repository, missing)
    raise failures.BadInput(
        f"the repository {repository} has none of {', '.join(FILES)}; give another one."
    )


def _unreachable(repository: str, error: Exception) -> failures.BadInput:
    return failures.BadInput(
        f"{repository} is no path here and cannot be fetched from the Hugging Face Hub "
        f"({failures.first_line(error)}); give a path, or check name and network."
    )
