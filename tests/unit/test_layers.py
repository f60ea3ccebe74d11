"""The order of imports, and the one door of each library, as BUILD.md states them."""

import ast
import functools
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "nest_dist"
# From the ground up. Rooms of one line never import each other.
FLOORS = (
    ("base",),
    ("sharding", "cluster", "config"),
    ("data", "model", "checkpointing", "telemetry"),
    ("train",),
    ("experiment",),
    ("pretrained", "rehearsal", "dataset_builder", "explain"),
    ("commands",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Library -> the files that may import it; a folder stands for all its files.
DOORS = {
    "absl.flags": ("commands/cli.py", "data/workers.py"),
    "array_record.python": ("data/sources/array_record.py",),
    "cv2": (
        "data/",
        "base/picture_grid.py",
        "telemetry/confusion.py",
        "telemetry/pictures.py",
        "telemetry/curves.py",
        "explain/drawing.py",
    ),
    "pyarrow": ("data/sources/parquet.py", "data/sources/parquet_file.py"),
    "requests": ("data/sources/byte_ranges.py",),
    "gin.config": ("config/gin_state.py",),
    "gin.configurable": ("experiment/run.py",),
    "gin.parse_config": ("config/strict_gin.py",),
    "google.protobuf": ("data/sources/tf_example.py",),
    "grain": ("data/",),
    "huggingface_hub": ("base/hub.py",),
    "orbax": ("checkpointing/",),
    "tensorboardX": ("telemetry/writer.py",),
    "wandb": ("telemetry/trackers/weights_and_biases.py",),
    "mlflow": ("telemetry/trackers/mlflow.py",),
    "rich": ("telemetry/terminal.py",),
    "safetensors": ("pretrained/formats/safetensors_file.py",),
    "optax": ("train/",),
    "flax.linen": ("model/",),
    "jax.distributed": ("cluster/",),
    "jax.sharding.Mesh": ("sharding/", "rehearsal/collectives.py"),
    "jax.sharding.PartitionSpec": ("sharding/",),
    "jax._src": ("cluster/jax_private.py",),
}
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imported(name: str) -> frozenset[str]:
    """Full names of everything that a file imports or reaches with dots, anywhere in its code."""
    names = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return frozenset(names)


def uses(name: str, library: str) -> bool:
    return any(f"{each}.".startswith(f"{library}.") for each in imported(name))


def rooms_imported(name: str) -> set[str]:
    return {
        rest.split(".")[0]
        for package, _, rest in (each.partition(".") for each in imported(name))
        if package == "nest_dist" and rest.split(".")[0] in FLOOR
    }


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down_only(name):
    here = name.partition("/")[0]
    if here in FLOOR:
        for room in rooms_imported(name) - {here}:
            assert FLOOR[room] < FLOOR[here], f"{name} imports {room}, which lies beside or above"


@pytest.mark.parametrize("name", FILES)
def test_each_library_has_one_door(name):
    for library, doors in DOORS.items():
        if uses(name, library):
            assert name.startswith(doors), f"{name} imports {library}; only {doors} may"


@pytest.mark.parametrize("library", DOORS)
def test_every_door_is_used(library):
    for door in DOORS[library]:
        users = [name for name in FILES if name.startswith(door) and uses(name, library)]
        assert users, f"nothing in {door} imports {library}; close that door"


@pytest.mark.parametrize("room", FLOOR)
def test_every_room_has_files_and_is_used(room):
    assert [name for name in FILES if name.startswith(f"{room}/")], f"there is no room {room}"
    users = {name.partition("/")[0] for name in FILES if room in rooms_imported(name)}
    # The program starts above, from its entry point.
    assert users - {room} or room == "commands", f"nothing imports {room}"


def test_every_room_has_its_floor():
    rooms = {name.partition("/")[0] for name in FILES if "/" in name}
    assert rooms == set(FLOOR)


def test_the_folder_of_gin_files_does_not_hide_the_library():
    assert not (PACKAGE.parent / "gin" / "__init__.py").exists()
