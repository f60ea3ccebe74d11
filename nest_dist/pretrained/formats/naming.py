"""How one format names and shapes the parameters of a model.

A new format is one file like `official` and `timm`, and a line in `weights.FORMATS`.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from nest_dist.model import linen, nest

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a format."""

    name: str  # in the format
    params: tuple[str, ...]  # names of the model's parameters that the array holds
    # Parameters -> array, which has the same elements in another order; None for one parameter as
    # It is
    join: Callable[..., np.ndarray] | None = None

    def joined(self, *leaves: np.ndarray) -> np.ndarray:
        """The array of the parameters `leaves`."""
        (first, *_) = leaves
        return first if self.join is None else self.join(*leaves)

    def split(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The parameters of `array`, by their shapes: the inverse of `joined`."""
        if self.join is None:
            return [array]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        numbers = np.split(np.arange(ends[-1]), ends[:-1])
        order = self.join(*map(np.reshape, numbers, shapes))
        elements = np.empty(array.size, array.dtype)
        elements[order.ravel()] = array.ravel()
        return list(map(np.reshape, np.split(elements, ends[:-1]), shapes))


class Naming(typing.Protocol):
    """A format."""

    MARK: str  # a name that every model has in this format, and in no other
    GELU: linen.Gelu  # of the code that the format belongs to

    def entries(self, model: nest.NesT) -> Iterable[Entry]:
        """Every array that holds a model.

        Raises:
            BadInput: if the format has no such model.
        """

    def fields(self, shapes: Shapes) -> dict[str, typing.Any]:
        """The fields of the `NesT` that has these shapes; None for those that they do not tell.

        Beside them "num_layers", over all levels.

        Raises:
            KeyError, IndexError, ValueError: if a name is missing, or a shape has another rank.
        """


def same(name: str, param: str) -> Entry:
    """An array that is one parameter under another name."""
    return Entry(name, (param,))


def layer(name: str, param: str, *leaves: str) -> Iterator[Entry]:
    """The arrays of a layer whose leaves have the same names in both."""
    for leaf in leaves or ("kernel", "bias"):
        yield same(f"{name}/{leaf}", f"{param}/{leaf}")


def layers(model: nest.NesT) -> Iterator[tuple[int, int]]:
    """(level, layer in the level) of every layer, first level first."""
    for level, depth in enumerate(model.block_repeats):
        for number in range(depth):
            yield level, number


def numbered(shapes: Shapes, name: str) -> list[tuple[int, ...]]:
    """The shapes under name.format(0), name.format(1) and so on."""
    listed: list[tuple[int, ...]] = []
    while (shape := shapes.get(name.format(len(listed)))) is not None:
        listed.append(shape)
    return listed


def fields(
    patch: tuple[int, ...],
    position_embeddings: Sequence[tuple[int, ...]],
    hidden: tuple[int, ...],
    **told: typing.Any,
) -> dict[str, typing.Any]:
    """Fields of `NesT` from shapes, and those that a format tells otherwise.

    Args:
        patch: of the first kernel, [side, side, channels of the image, channels of a token].
        position_embeddings: of each level, [1, T, N, C].
        hidden: of the first bias in the first MLP.
    """
    patch_size, _, num_channels, dim = patch
    _, T, N, _ = position_embeddings[-1]
    widths = [C for _, _, _, C in position_embeddings]
    block_side, halvings = math.isqrt(N), 2 ** (len(widths) - 1)
    return {
        "image_size": patch_size * block_side * math.isqrt(T) * halvings,
        "patch_size": patch_size,
        "dim": dim,
        "num_hierarchies": len(widths),
        "num_channels": num_channels,
        "block_side": None if T == 1 else block_side,
        "mlp_ratio": max(hidden[0] // dim, 1),
        "widen": len(widths) == 1 or widths[1] != widths[0],
        **told,
    }
