"""The layers of a model as XLA computes them, counted as kernels are: by bundles."""

import jax
from jax import Array

from nest_dist.base import chips
from nest_dist.model import encoder, nest
from nest_dist.rehearsal import bundles, estimates, kernels

# Computed at once: of more, activations leave the chip.
IMAGES = 8


def cycles(model: nest.NesT, device: jax.Device, chip: chips.Chip, images: int) -> float:
    """An image's cycles in all layers, forward and backward, and nothing dropped.

    Args:
        model: of the run.
        device: compiled for.
        chip: of the device.
        images: of the device in a step; of more than `IMAGES` so many are computed at once.
    """
    plain, geometry = model.clone(kernels="plain", remat="none"), model.geometry()
    at_once = min(images, IMAGES)
    total = 0.0
    for width, depth, (rows, columns) in zip(
        model.widths(), model.block_repeats, geometry.grids, strict=True
    ):
        layer = encoder.EncoderLayer(model.heads * width // model.dim, 0.0, plain.options())
        tokens = (at_once, rows * columns, geometry.block_side**2, width)
        bundles.forget()
        program = estimates.read(_compiled(layer, tokens, device).as_text())
        sums = kernels.cycles(program, (), bundles.written(), chip, lambda _: "layer")
        total += depth * sum(sums.cycles.values()) / at_once
    return total


def _compiled(
    layer: encoder.EncoderLayer, tokens: tuple[int, ...], device: jax.Device
) -> jax.stages.Compiled:
    here = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct(tokens, layer.options.compute_dtype, sharding=here)
    params = jax.eval_shape(layer.init, jax.random.key(0), x, None)
    params = jax.tree.map(lambda leaf: leaf.update(sharding=here), params)

    def both(params: object, x: Array, of_y: Array) -> object:
        y, pull = jax.vjp(lambda params, x: layer.apply(params, x, None), params, x)
        return y, pull(of_y)

    return jax.jit(both).lower(params, x, x).compile()
