"""Counts the multiply-adds of NesT's matrix products and convolutions, from its definition.

Norms, softmax, GELU, biases, pools and whatever an implementation computes again do not count.
"""

from nest_dist.model import nest


def multiply_adds(model: nest.NesT) -> int:
    """Multiply-adds of one image's forward pass."""
    geometry = model.geometry()
    widths = model.widths()
    block_tokens = geometry.block_side**2  # N
    image_tokens = [rows * columns * block_tokens for rows, columns in geometry.grids]
    total = image_tokens[0] * model.patch_size**2 * model.num_channels * model.dim
    for level, (tokens, width, depth) in enumerate(
        zip(image_tokens, widths, model.block_repeats, strict=True)
    ):
        heads = model.heads * width // model.dim
        key_value = 2 * (width // heads if model.multi_query else width)
        projections = width * (2 * width + key_value)
        attention = 2 * block_tokens * width
        mlp = 2 * model.mlp_ratio * width**2
        total += depth * tokens * (projections + attention + mlp)
        if level > 0:
            total += image_tokens[level - 1] * 9 * widths[level - 1] * width
    return total + width * model.num_logits


def training_flops(model: nest.NesT) -> float:
    """Floating-point operations of one image's training step: forward once, backward twice.

    Source: arXiv 2204.02311, appendix B.
    """
    return 3 * 2 * float(multiply_adds(model))
