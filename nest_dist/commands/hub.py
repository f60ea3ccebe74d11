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
    except ImportError:
        raise failures.BadInput(
            f"{repository} is no path here; to look for it on the Hugging Face Hub, "
            "`pip install nest-dist[hub]`."
        ) from None
    huggingface_hub.utils.logging.set_verbosity_error()  # it tells of every new attempt
    for name in FILES:
        try:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, name))
        # Anything from a proxy to a missing token; its own first line says which.
        except Exception as error:
            local = isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError)
            if isinstance(error, huggingface_hub.errors.EntryNotFoundError) and not local:
                continue
            raise failures.BadInput(
                f"{repository} is no path here and cannot be fetched from the Hugging Face Hub "
                f"({failures.first_line(error)}); give a path, or check name and network."
            ) from None
    raise failures.BadInput(
        f"the repository {repository} has none of {', '.join(FILES)}; give another one."
    )
