"""NesT, the nested hierarchical transformer.

    image -> patches -> blocks -> [ level -> aggregation ] x (levels - 1) -> level -> mean -> head

Attention stays inside a block; only the aggregations let neighbouring blocks meet, and each of
them makes one block of four. Source: arXiv 2105.12723, figure 1 and section 3.
"""

import flax.linen as nn
import gin
import jax.numpy as jnp
from jax import Array

from nest_dist.base import checks, failures
from nest_dist.model import affine, aggregation, embed, encoder, layout
from nest_dist.parallel import rules


@gin.register
class NesT(nn.Module):
    """Classifies images.

    Attributes:
        image_size: side, or height and width, in pixels.
        patch_size: side of a patch in pixels.
        dim: channels of a token at the first level.
        heads: of attention at the first level; divides `dim`.
        num_hierarchies: levels.
        block_repeats: layers of each level, first level first.
        num_classes: logits; 0 for features without a head.
        num_channels: of the image.
        block_side: tokens along a side of a block; None for the largest that fit, which end as
            one block if the image is square.
        mlp_ratio: hidden width of an MLP over the width of its tokens.
        widen: whether channels and heads double from level to level.
        multi_query: whether one key and value head serves all query heads.
        stochastic_depth: drop rate of the last layer's branches, in [0, 1).
        attention_dropout: rate inside attention, in [0, 1).
        projection_dropout: rate after projections, in [0, 1).
        gelu: the exact function, or its tanh approximation, as the official weights need.
        compute_dtype: of activations and products; parameters, statistics, softmax and logits
            are float32.
        remat: what the backward pass computes again to save memory, see `encoder.Options`.
        layers: see `encoder.Options`; parameters have the same names either way.
    """

    image_size: int | tuple[int, int]
    patch_size: int
    dim: int
    heads: int
    num_hierarchies: int
    block_repeats: tuple[int, ...]
    num_classes: int
    num_channels: int = 3
    block_side: int | None = None
    mlp_ratio: int = 4
    widen: bool = True
    multi_query: bool = False
    stochastic_depth: float = 0.0
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0
    gelu: encoder.Gelu = "tanh"
    compute_dtype: affine.ComputeDtype = "float32"
    remat: encoder.Remat = "none"
    layers: encoder.Layers = "unrolled"

    def __post_init__(self) -> None:
        for field in ("image_size", "block_repeats"):
            if isinstance(value := getattr(self, field), list):
                setattr(self, field, tuple(value))  # gin and JSON know lists
        checks.types(self, skip=("parent", "name"))
        self._check_numbers()
        self.geometry()
        super().__post_init__()

    def geometry(self) -> layout.Geometry:
        """How this model cuts its images."""
        return layout.geometry(
            self.image_size, self.patch_size, self.num_hierarchies, self.block_side
        )

    def widths(self) -> tuple[int, ...]:
        """Channels of a token at each level."""
        factor = 2 if self.widen else 1
        return tuple(self.dim * factor**level for level in range(self.num_hierarchies))

    @nn.compact
    def __call__(self, images: Array, train: bool = False, rows: Array | None = None) -> Array:
        """Float32 logits [B, num_classes] of normalised images [B, H, W, num_channels].

        Without a head, features [B, channels of the last level]. Each level's outcome can be
        captured: `apply(..., mutable="intermediates")` also gives `level_0` [B, T, N, C] and so
        on. `train=True` needs a key named "dropout" where a drop rate is above 0; with `rows`, the
        number of each image in a larger batch, int32 [B], the same is dropped as there.
        """
        geometry = self.geometry()
        self._check_images(images, geometry)
        drop_rates = encoder.drop_rates(self.stochastic_depth, self.block_repeats)
        if train and rows is None:
            rows = jnp.arange(images.shape[0])

        tokens = embed.PatchEmbedding(
            self.patch_size, self.dim, self.compute_dtype, name="patch_embedding"
        )(images)  # [B, H, W, C]
        blocks = layout.to_blocks(tokens, geometry.block_side)  # [B, T, N, C]
        for level, width in enumerate(self.widths()):
            if level > 0:
                blocks = aggregation.Aggregation(
                    geometry.grids[level - 1],
                    width,
                    self.compute_dtype,
                    name=f"aggregations_{level - 1}",
                )(blocks)  # [B, T / 4, N, C]
            blocks = rules.constrain(blocks, "batch", "rows", None, None)
            blocks = encoder.Level(
                self.heads * width // self.dim,
                drop_rates[level],
                self._options(),
                name=f"levels_{level}",
            )(blocks, rows if train else None)
            self.sow("intermediates", f"level_{level}", blocks)
        features = jnp.mean(affine.Norm("float32", name="norm")(blocks), axis=(1, 2))  # [B, C]
        if self.num_classes == 0:
            return features
        kernel, bias = affine.Affine(
            (width, self.num_classes), (self.num_classes,), "float32", name="head"
        )()
        return features @ kernel + bias

    def _options(self) -> encoder.Options:
        return encoder.Options(
            multi_query=self.multi_query,
            mlp_ratio=self.mlp_ratio,
            attention_dropout=self.attention_dropout,
            projection_dropout=self.projection_dropout,
            gelu=self.gelu,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
            layers=self.layers,
        )

    def _check_numbers(self) -> None:
        lengths = ("image_size", "patch_size", "dim", "heads", "num_hierarchies", "block_repeats")
        for field in (*lengths, "num_channels", "block_side", "mlp_ratio"):
            value, most = getattr(self, field), 1000 if field == "block_repeats" else 2**16
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None:
                    checks.in_range(f"NesT.{field}", number, 1, most)
        checks.in_range("NesT.num_classes", self.num_classes, 0, 2**24)
        for field in ("stochastic_depth", "attention_dropout", "projection_dropout"):
            checks.in_range(f"NesT.{field}", getattr(self, field), 0, 1, open_high=True)
        if len(self.block_repeats) != self.num_hierarchies:
            raise failures.BadInput(
                f"NesT.block_repeats is {self.block_repeats}, for {len(self.block_repeats)} "
                f"levels, but NesT.num_hierarchies is {self.num_hierarchies}; give one number of "
                "layers for each level."
            )
        checks.divides("NesT.dim", self.dim, self.heads, "NesT.heads", "change either")

    def _check_images(self, images: Array, geometry: layout.Geometry) -> None:
        wanted = (*geometry.image_sides, self.num_channels)
        if images.ndim != 4 or images.shape[1:] != wanted:
            height, width, channels = wanted
            raise failures.BadInput(
                f"images have shape {images.shape}; this model takes [B, {height}, {width}, "
                f"{channels}]: resize them, or change NesT.image_size or NesT.num_channels."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise failures.BadInput(f"images are {images.dtype}; normalise them to float32 first.")
