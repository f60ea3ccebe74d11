"""Multi-host distributed pretraining of NesT, the nested hierarchical vision transformer."""

import importlib
import typing

__version__ = "0.1.0"


def __getattr__(name: str) -> typing.Any:
    # Loaded on first use: a data worker or `nest-dist --help` needs no model.
    if name == "NesT":
        return importlib.import_module("nest_dist.model.nest").NesT
    if name == "load":
        return importlib.import_module("nest_dist.commands.pretrained").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
