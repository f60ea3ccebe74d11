"""Multi-host distributed pretraining of NesT, the nested hierarchical vision transformer."""

import importlib
import os
import typing

__version__ = "0.2.0"

# OpenCV reads it when it is loaded, and refuses larger pictures by their headers.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")


# Public names, loaded on first use: a data worker or `nest-dist --help` needs none of them.
_MODULES = {
    "NesT": "nest_dist.model.nest",
    "batches": "nest_dist.experiment.batches",
    "gradcat": "nest_dist.explain.gradcat",
    "load": "nest_dist.pretrained.load",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
