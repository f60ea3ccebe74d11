"""Trees as {"levels_0/layers_0/attention/query/kernel": leaf}, and masks by pattern."""

import fnmatch
import typing
from collections.abc import Callable, Iterable, Mapping

import jax
from flax import traverse_util

# Nested dictionaries, tuples and registered dataclasses, or one leaf; JAX has no type for them.
Tree: typing.TypeAlias = typing.Any


def flatten(tree: Tree) -> dict[str, Tree]:
    """Every leaf of a tree under its path, keys joined by slashes, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Tree]) -> dict[str, Tree]:
    """Nested dictionaries from slash-joined paths: the inverse of `flatten` for such trees."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def map_named(function: Callable[..., Tree], tree: Tree, *others: Tree) -> Tree:
    """`jax.tree.map` whose function also receives the leaf's path, as its first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(_name(path), *leaves), tree, *others
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a shell-style pattern fits the full name; `*` also crosses slashes."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
