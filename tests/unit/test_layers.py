"""The order of imports, and the one door of each library, as BUILD.md states them."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "nest_dist"
RANK = {
    "base": 0,
    "parallel": 1,
    "model": 2,
    "data": 2,
    "checkpointing": 2,
    "telemetry": 2,
    "train": 3,
    "commands": 4,
}
# Library -> the files that may import it; a folder stands for all its files.
DOORS = {
    "absl.flags": ("commands/cli.py", "data/loading.py"),
    "array_record.python": ("data/records.py",),
    "cv2": ("data/", "telemetry/pictures.py"),
    "datasets": ("data/sources/huggingface.py",),
    "pyarrow": (
        "data/sources/parquet_files.py",
        "data/sources/parquet.py",
        "data/preparing/parquet.py",
    ),
    "gin.parse_config": ("commands/configuration.py",),
    "grain": ("data/",),
    "orbax": ("checkpointing/",),
    "tensorboardX": ("telemetry/writer.py",),
    "rich": ("telemetry/progress.py",),
    "optax": ("train/optimizer.py", "train/state.py"),
    "flax.linen": ("model/", "parallel/rules.py"),
    "jax.distributed": ("parallel/",),
    "jax.sharding.Mesh": ("parallel/",),
    "jax.sharding.PartitionSpec": ("parallel/",),
    "jax.experimental.multihost_utils": ("parallel/",),
    "jax._src": ("parallel/hosts.py", "parallel/peers.py"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
    """Full names of everything that a file imports or reaches with dots, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    here = path.relative_to(PACKAGE).parts[0]
    for name in imported(path):
        package, *rest = name.split(".")
        if package == "nest_dist" and here in RANK and rest and rest[0] in RANK:
            there = rest[0]
            assert there == here or RANK[there] < RANK[here], f"{name} lies beside or above {here}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_has_one_door(path):
    here = str(path.relative_to(PACKAGE))
    for name in imported(path):
        for library, doors in DOORS.items():
            if name == library or name.startswith(library + "."):
                assert here.startswith(doors), f"{here} imports {name}; only {doors} may"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_commands_are_configurable_roots(path):
    here = path.relative_to(PACKAGE)
    if here.parts[0] != "commands":
        assert "gin.configurable" not in path.read_text(), "use gin.register below commands"


def test_the_folder_of_gin_files_does_not_hide_the_library():
    assert not (PACKAGE.parent / "gin" / "__init__.py").exists()
