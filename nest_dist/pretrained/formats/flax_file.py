"""Flax's msgpack files, as the official code writes them: parameters, or a state with them."""

import pathlib
from collections.abc import Mapping

import numpy as np
from flax import serialization

from nest_dist.base import failures, tree_paths

# Keys under which a state has its parameters: of flax's optimizer before 2022, and of variables.
_PARAMETER_KEYS = ("optimizer", "target", "params")


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Parameters by slash-joined name, and the names of the file's other entries.

    Raises:
        BadInput: if the file holds no tree of arrays; any exception if it is corrupt.
    """
    tree = serialization.msgpack_restore(path.read_bytes())
    others: list[str] = []
    for name in _PARAMETER_KEYS:
        if isinstance(tree, dict) and name in tree:
            others += [other for other in tree if other != name]
            tree = tree[name]
    leaves = tree_paths.flatten(tree) if isinstance(tree, dict) else {}
    if not leaves or not all(isinstance(leaf, np.ndarray) for leaf in leaves.values()):
        raise failures.BadInput(
            f"{path} is a msgpack file, but not one of arrays by name; give a checkpoint."
        )
    return leaves, tuple(others)


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state of the official code's form that holds nothing but parameters."""
    tree: dict[str, object] = {
        "model_state": {},
        "optimizer": {"target": tree_paths.unflatten(arrays)},
        "step": 0,
    }
    path.write_bytes(serialization.msgpack_serialize(tree))


def looks_like(first_bytes: bytes) -> bool:
    """Whether a file that begins so is meant to be one of this format: a map with texts as keys."""
    # A byte for the kind of map, up to four for its size, then the first key.
    for kinds, key_at in ((range(0x81, 0x90), 1), ((0xDE,), 3), ((0xDF,), 5)):
        if first_bytes[:1] and first_bytes[0] in kinds and len(first_bytes) > key_at:
            return first_bytes[key_at] in range(0xA0, 0xC0) or first_bytes[key_at] == 0xD9
    return False
