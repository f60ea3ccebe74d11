"""The gin files that travel with the package."""

import importlib.resources
import pathlib


def folder() -> pathlib.Path:
    """Their folder: inside an installed package, or `gin/` of a checkout."""
    package = pathlib.Path(str(importlib.resources.files("nest_dist")))
    installed = package / "gin_files"
    return installed if installed.is_dir() else package.parent / "gin"


def names(below: str = "") -> list[str]:
    """Paths below `folder()`, such as "runs/quickstart.gin": all of them, or those in `below`."""
    every = (path.relative_to(folder()) for path in folder().rglob("*.gin"))
    return sorted(str(path) for path in every if path.is_relative_to(below))
