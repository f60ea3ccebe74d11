"""The gin files that travel with the package."""

import importlib.resources
import pathlib


def folder() -> pathlib.Path:
    """Where they lie: inside an installed package, beside that of a checkout."""
    package = pathlib.Path(str(importlib.resources.files("nest_dist")))
    installed = package / "gin_files"
    return installed if installed.is_dir() else package.parent / "gin"


def names(below: str = "") -> list[str]:
    """Their paths in that folder, or in one below it, such as "runs/quickstart.gin"."""
    return sorted(str(path.relative_to(folder())) for path in (folder() / below).rglob("*.gin"))
