"""Starts one model from the weights of another with other classes, another image or channels."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures
from nest_dist.model import nest, patching
from nest_dist.pretrained import weights
from nest_dist.pretrained.formats import native

# The parameters whose shape depends on the number of classes.
HEAD = ("head/bias", "head/kernel")
# The one whose shape depends on the channels of the image.
FIRST = "patch_embedding/kernel"


def transfer(
    source: nest.NesT, params: weights.Arrays, target: nest.NesT, head: weights.Arrays
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters for `target` from those of `source`.

    Position embeddings are resized in the image plane: blocks are joined to an image, which is
    cut into blocks again, since an embedding belongs to a position in the image. The first
    convolution is adapted to other channels, see `_for_channels`.

    Args:
        source: the model that `params` belong to.
        params: its parameters, flat, of any type that float32 holds exactly.
        head: initial values of the target's `HEAD`, used where that of `params` does not fit.
    Returns:
        Parameters of float32, and lines on what became of them.
    Raises:
        BadInput: if the models differ in more than image, channels, blocks and classes.
    """
    for field in weights.ARCHITECTURE:
        stored, wanted = getattr(source, field), getattr(target, field)
        if stored != wanted and field != "num_channels":
            raise failures.BadInput(
                f"NesT.{field} is {wanted}, the weights to start from have {stored}; only "
                "image_size, num_channels, block_side and num_classes may differ, so set it to "
                f"{stored}."
            )
    before, after = source.geometry(), target.geometry()
    same_blocks = (before.block_side, before.grids) == (after.block_side, after.grids)
    result: dict[str, np.ndarray] = {}
    resized, reinitialized, adapted = [], [], ""
    for name, shape in native.shapes_of(target).items():
        if name in HEAD and (name not in params or params[name].shape != shape):
            result[name] = head[name]
            reinitialized.append(name)
            continue
        result[name] = np.asarray(params[name], np.float32)
        if name == FIRST and shape != params[name].shape:
            result[name], adapted = _for_channels(result[name], target.num_channels)
        if name.endswith("/position_embedding") and not same_blocks:
            level = int(name.removeprefix("levels_").partition("/")[0])
            result[name] = _resized(result[name], before.grids[level], after, level)
            resized.append(f"{name} {list(params[name].shape)} to {list(shape)}")
    changed = len(resized) + len(reinitialized) + bool(adapted)
    lines = [f"{len(result) - changed} parameters loaded as they are"]
    if adapted:
        lines.append(adapted)
    if resized:
        lines.append(f"resized to another image: {', '.join(resized)}")
    if reinitialized:
        lines.append(f"reinitialized for other classes: {', '.join(reinitialized)}")
    if source.gelu != target.gelu:
        lines.append(
            f"NesT.gelu is {target.gelu!r}, that of the weights is {source.gelu!r}: bind "
            f"NesT.gelu = {source.gelu!r} for the same outputs"
        )
    return result, lines


def with_classes(
    params: weights.Arrays, stored: Sequence[str], wanted: Sequence[str]
) -> tuple[weights.Arrays, tuple[str, ...]]:
    """The parameters with a head in the order of some classes, or without the head of others.

    Args:
        stored: the name of each of their classes; empty if they are not known.
        wanted: names of the classes to learn; empty for those of the parameters.
    Returns:
        The parameters, and a line that says what was changed.
    """
    if tuple(stored) == tuple(wanted) or not stored or not wanted:
        return params, ()
    if sorted(stored) == sorted(wanted):
        order = [stored.index(name) for name in wanted]
        head = {name: np.asarray(params[name])[..., order] for name in HEAD if name in params}
        return {**params, **head}, ("the head is brought into the order of the data's classes",)
    others = {name: leaf for name, leaf in params.items() if name not in HEAD}
    pairs = itertools.zip_longest(stored, wanted, fillvalue="none")
    old, new = next((old, new) for old, new in pairs if old != new)
    return others, (f"the weights have class {old!r} where the data have {new!r}: a new head",)


def _for_channels(kernel: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """The first convolution [height, width, channels, C] for other channels, and what was done.

    A grey picture keeps its outputs, if it is normalized like each colour. Alpha is ignored at
    first, so that colours keep theirs.
    """
    _, _, before, _ = kernel.shape
    what = f"{FIRST} adapted from {before} channels to {channels}"
    if (before, channels) == (3, 4):
        padded = np.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
        return padded, f"{what}: the colours as they are, alpha from zero"
    total = kernel.sum(axis=2, keepdims=True)
    if channels == 1:
        return total, f"{what}: the sum over channels"
    mean = np.repeat(total / channels, channels, axis=2)
    return mean, f"{what}: each has an equal share of the sum over channels"


def _resized(
    embedding: np.ndarray, grid: patching.Grid, geometry: patching.Geometry, level: int
) -> np.ndarray:
    plane = patching.to_image(jnp.asarray(embedding), grid)  # [1, H, W, C]
    H, W = (blocks * geometry.block_side for blocks in geometry.grids[level])
    plane = jax.image.resize(plane, (1, H, W, plane.shape[-1]), "bicubic")
    return np.asarray(patching.to_blocks(plane, geometry.block_side))
