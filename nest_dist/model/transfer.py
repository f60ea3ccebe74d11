"""Starting one model from the weights of another: other classes, other image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures
from nest_dist.model import layout, nest, weights

# What the number of classes shapes.
HEAD = ("head/bias", "head/kernel")


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each parameter, by name.

    Attributes:
        taken: as they were.
        resized: position embeddings brought to another grid of tokens.
        fresh: of the head, with first values because the number of classes differs.
        notes: what else differs between the models and may matter.
    """

    taken: tuple[str, ...]
    resized: tuple[str, ...]
    fresh: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for people: numbers, and the names that are not just taken."""
        lines = [f"{len(self.taken)} parameters taken as they are"]
        if self.resized:
            lines.append(f"resized to another image: {', '.join(self.resized)}")
        if self.fresh:
            lines.append(f"initialised anew for other classes: {', '.join(self.fresh)}")
        return [*lines, *self.notes]


def transfer(
    source: nest.NesT, params: weights.Arrays, model: nest.NesT, fresh: weights.Arrays
) -> tuple[dict[str, np.ndarray], Report]:
    """Parameters for `model` from those of `source`.

    Position embeddings are resized in the image plane: a block's embedding belongs to its place
    in the image, so blocks are first put together, and the result is cut into blocks again.

    Args:
        source: the model that `params` belong to.
        params: its parameters, flat, of any type that float32 holds exactly.
        model: the model that is to be trained.
        fresh: first values of the model's `HEAD`, used where that of `params` does not fit.
    Returns:
        Parameters of float32.
    Raises:
        BadInput: if the models differ in more than image, blocks and classes.
    """
    _require_alike(source, model)
    params = {name: np.asarray(leaf, np.float32) for name, leaf in params.items()}
    result: dict[str, np.ndarray] = {}
    taken, resized, renewed = [], [], []
    for name, shape in weights.shapes_of(model).items():
        if name in HEAD and (name not in params or params[name].shape != shape):
            result[name] = fresh[name]
            renewed.append(name)
        elif name.endswith("/position_embedding") and _grids(source) != _grids(model):
            level = int(name.removeprefix("levels_").partition("/")[0])
            result[name] = _resized(params[name], source, model, level)
            resized.append(f"{name} {list(params[name].shape)} to {list(shape)}")
        else:
            result[name] = params[name]
            taken.append(name)
    notes = []
    if source.gelu != model.gelu:
        notes.append(
            f"NesT.gelu is {model.gelu!r}, where the weights come from it is {source.gelu!r}: bind "
            "that for the same outputs"
        )
    return result, Report(tuple(taken), tuple(resized), tuple(renewed), tuple(notes))


def _grids(model: nest.NesT) -> tuple[object, ...]:
    geometry = model.geometry()
    return geometry.block_side, geometry.grids


def _resized(places: np.ndarray, source: nest.NesT, model: nest.NesT, level: int) -> np.ndarray:
    plane = layout.to_image(jnp.asarray(places), source.geometry().grids[level])  # [1, H, W, C]
    wanted = model.geometry()
    rows, columns = wanted.grids[level]
    sides = (rows * wanted.block_side, columns * wanted.block_side)
    plane = jax.image.resize(plane, (1, *sides, plane.shape[-1]), "bicubic")
    return np.asarray(layout.to_blocks(plane, wanted.block_side))


def _require_alike(source: nest.NesT, model: nest.NesT) -> None:
    for field in weights.ARCHITECTURE:
        before, now = getattr(source, field), getattr(model, field)
        if before != now:
            raise failures.BadInput(
                f"NesT.{field} is {now}, the weights to start from have {before}; only image_size, "
                f"block_side and num_classes may differ, so set it to {before}."
            )
