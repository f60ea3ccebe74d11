"""Flax's msgpack files, as the official code writes them: parameters, or a state with them."""

import pathlib
from collections.abc import Mapping

import numpy as np
from flax import serialization

from nest_dist.base import failures, tree_paths

# A NesT-B with the state of its optimizer has 30,000.
MOST_OBJECTS = 1_000_000
# By the first byte of an object, how many bytes follow before its content. Texts and bytes have a
# length there, containers a number of objects, and extensions a length and a type.
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_CONTAINERS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 2, 0xC8: 3, 0xC9: 5, **dict.fromkeys(range(0xD4, 0xD9), 1)}
_NUMBERS = {0xCA: 4, 0xCB: 8} | {first: 1 << (first & 3) for first in range(0xCC, 0xD4)}
# Keys under which a state has its parameters: of flax's optimizer before 2022, and of variables.
_PARAMETER_KEYS = ("optimizer", "target", "params")


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Parameters by slash-joined name, and the names of the file's other entries.

    Raises:
        BadInput: if the file holds no tree of arrays; any exception if it is corrupt.
    """
    content = path.read_bytes()
    _require_few_objects(content)
    tree = serialization.msgpack_restore(content)
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


def _require_few_objects(content: bytes) -> None:
    """Counts what a file holds and announces: a byte of it may become a hundred of memory.

    Source: https://github.com/msgpack/msgpack/blob/master/spec.md.
    """
    at = objects = announced = 0
    while at < len(content):
        first, at, objects = content[at], at + 1, objects + 1
        if 0x80 <= first < 0xA0:  # a small map or list
            announced += (first & 0x0F) * (2 if first < 0x90 else 1)
        elif 0xA0 <= first < 0xC0:  # a short text
            at += first & 0x1F
        elif size := _LENGTHS.get(first):
            at += size + int.from_bytes(content[at : at + size], "big")
        elif size := _CONTAINERS.get(first):
            length = int.from_bytes(content[at : at + size], "big")
            announced += length * (2 if first >= 0xDE else 1)
            at += size
        else:
            at += _EXTENSIONS.get(first, 0) + _NUMBERS.get(first, 0)
        if max(objects, announced) > MOST_OBJECTS:
            raise ValueError(f"it announces more than {MOST_OBJECTS:,} objects")


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
