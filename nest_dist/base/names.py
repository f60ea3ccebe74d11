"""Trees as {"levels_0/layers_0/attention/query/kernel": leaf}, and masks by pattern."""

import fnmatch
import typing
from collections.abc import Callable, Iterable, Mapping

import jax

Tree = typing.Any  # a nest of dictionaries, tuples and registered dataclasses


def flatten(tree: Tree) -> dict[str, typing.Any]:
    """Every leaf of a tree under its path, parts joined by slashes, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """Nested dictionaries from slash-joined paths: the inverse of `flatten` for such trees."""
    tree: dict[str, typing.Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_named(
    function: Callable[..., typing.Any], tree: typing.Any, *rest: typing.Any
) -> typing.Any:
    """`jax.tree.map` whose function also receives the leaf's name first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(_name(path), *leaves), tree, *rest
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a shell-style pattern fits the whole name; `*` also crosses slashes."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _name(path: tuple[typing.Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
