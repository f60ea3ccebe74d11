"""NesT, the nested hierarchical transformer.

    image -> patches -> blocks -> [ level -> aggregation ] x (levels - 1) -> level -> mean -> head

Attention stays inside a block. An aggregation mixes neighbouring blocks and makes one block of
four. Source: arXiv 2105.12723, figure 1 and section 3.
"""

import dataclasses
import typing

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import checks, failures, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.model import aggregation, encoder, linen, patching
from nest_dist.sharding import rules

Size = typing.Annotated[int, Within(1, 2**16)]
Rate = typing.Annotated[float, Within(0, 1, open_high=True)]


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
        num_classes: logits; 0 for features without a head; None where a run counts the classes of
            its data.
        num_channels: of the image.
        block_side: tokens along a side of a block; None for the largest that fit, which end as
            one block if the image is square.
        mlp_ratio: hidden width of an MLP over the width of its tokens.
        widen: whether channels and heads double from level to level.
        multi_query: whether one key and value head serves all query heads.
        stochastic_depth: drop rate of the last layer's branches.
        attention_dropout: rate inside attention.
        projection_dropout: rate after projections.
        gelu: the exact function, or its tanh approximation, as the official weights need.
        compute_dtype: of activations and products; parameters, statistics, softmax and logits
            are float32.
        remat: what the backward pass computes again to save memory, see `encoder.Options`.
        layers: see `encoder.Options`; parameters have the same names either way.
        kernels: "fused" computes the branches of layers by kernels for TPUs, "plain" by XLA; on
            GPUs "fused" is "cudnn", attention by cuDNN. A run replaces "auto" by what serves on its
            devices, see `fused.choose`.

    Example:
        >>> import jax
        >>> import nest_dist
        >>> sizes = {"image_size": 32, "patch_size": 4, "dim": 24, "heads": 3, "num_classes": 10}
        >>> model = nest_dist.NesT(num_hierarchies=2, block_repeats=(1, 1), **sizes)
        >>> images = jax.numpy.zeros((1, 32, 32, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> model.apply(variables, images).shape
        (1, 10)
    """

    image_size: typing.Annotated[int | tuple[int, int], Within(1, 2**16)]
    patch_size: Size
    dim: Size
    heads: Size
    num_hierarchies: Size
    block_repeats: typing.Annotated[tuple[int, ...], Within(1, 1000)]
    num_classes: typing.Annotated[int, Within(0, 2**24)] | None
    num_channels: Size = 3
    block_side: Size | None = None
    mlp_ratio: Size = 4
    widen: bool = True
    multi_query: bool = False
    stochastic_depth: Rate = means(Effect.CHANGES, default=0.0)
    attention_dropout: Rate = means(Effect.CHANGES, default=0.0)
    projection_dropout: Rate = means(Effect.CHANGES, default=0.0)
    gelu: linen.Gelu = means(Effect.CHANGES, default="tanh")
    compute_dtype: linen.ComputeDtype = means(Effect.CHANGES, default="float32")
    remat: encoder.Remat = means(Effect.NONE, default="none")
    layers: encoder.Layers = means(Effect.NONE, default="unrolled")
    kernels: encoder.Kernels = means(Effect.NONE, default="auto")

    def __post_init__(self) -> None:
        for field in ("image_size", "block_repeats"):
            if isinstance(value := getattr(self, field), list):
                setattr(self, field, tuple(value))  # gin and JSON know lists
        settings.check(self)
        if len(self.block_repeats) != self.num_hierarchies:
            raise failures.BadInput(
                f"NesT.block_repeats is {self.block_repeats}, for {len(self.block_repeats)} "
                f"levels, but NesT.num_hierarchies is {self.num_hierarchies}; give one number of "
                "layers for each level."
            )
        checks.divides("NesT.dim", self.dim, self.heads, "NesT.heads", "change either")
        self.geometry()
        super().__post_init__()

    def geometry(self) -> patching.Geometry:
        """How this model cuts its images."""
        return patching.geometry(
            self.image_size, self.patch_size, self.num_hierarchies, self.block_side
        )

    def widths(self) -> tuple[int, ...]:
        """Channels of a token at each level."""
        factor = 2 if self.widen else 1
        return tuple(self.dim * factor**level for level in range(self.num_hierarchies))

    def options(self) -> encoder.Options:
        """What the layers of all levels have in common."""
        names = [field.name for field in dataclasses.fields(encoder.Options)]
        return encoder.Options(**{name: getattr(self, name) for name in names})

    @property
    def num_logits(self) -> int:
        """`num_classes`, where it is known.

        Raises:
            BadInput: if it is None, as no data was there to count classes in.
        """
        if self.num_classes is None:
            raise failures.BadInput(
                "NesT.num_classes is None, and no data is there to count classes in; bind "
                "num_classes."
            )
        return self.num_classes

    @nn.compact
    def __call__(
        self,
        images: Array,
        train: bool = False,
        batch_rows: Array | None = None,
        masked: tuple[Array, Array] | None = None,
    ) -> Array:
        """Float32 logits [B, num_classes] of normalized images; without a head, features [B, C].

        `apply(..., mutable="intermediates")` also gives each level's output: `level_0`
        [B, T, N, C] and so on; `mutable="features"` gives what the head receives, `pooled` [B, C].

        Args:
            images: [B, H, W, num_channels].
            train: whether to drop; a drop rate above 0 needs `rngs={"dropout": key}`.
            batch_rows: int32 [B], rows of the images in the global batch, which key what is
                dropped; by default their rows in `images`.
            masked: bool [B, h, w], which patches are hidden, and the token [C] in their stead; then
                the result is the tokens [B, h', w', C'] of the last level, float32.
        """
        geometry = self.geometry()
        self._check_images(images, geometry)
        drop_rates = encoder.drop_rates(self.stochastic_depth, self.block_repeats)
        if train and batch_rows is None:
            batch_rows = jnp.arange(images.shape[0])

        tokens, bias = self._embedded(images)  # [B, H, W, C]
        if masked is not None:
            hidden, token = masked
            tokens, bias = tokens if bias is None else tokens + bias, None
            tokens = jnp.where(hidden[..., None], token.astype(tokens.dtype), tokens)
        blocks = patching.to_blocks(tokens, geometry.block_side)  # [B, T, N, C]
        for level, width in enumerate(self.widths()):
            if level > 0:
                aggregate = linen.gathered(aggregation.Aggregation, self, self.compute_dtype)
                blocks = aggregate(
                    geometry.grids[level - 1],
                    width,
                    self.compute_dtype,
                    self.kernels,
                    name=f"aggregations_{level - 1}",
                )(blocks)  # [B, T / 4, N, C]
            blocks = rules.constrain(blocks, "batch", "rows", None, None)
            blocks = encoder.Level(
                self.heads * width // self.dim,
                drop_rates[level],
                self.options(),
                geometry.grids[level],
                level + 1 < self.num_hierarchies,
                name=f"levels_{level}",
            )(blocks, batch_rows if train else None, bias if level == 0 else None)
            self.sow("intermediates", f"level_{level}", blocks)
        norm = linen.gathered(linen.LayerNorm, self, "float32", "norm")
        blocks = norm("float32", name="norm")(blocks)
        if masked is not None:
            return patching.to_image(blocks, geometry.grids[-1])  # [B, H, W, C]
        features = jnp.mean(blocks, axis=(1, 2))  # [B, C]
        if not self.is_initializing():  # which would keep them beside the parameters
            self.sow("features", "pooled", features)
        if self.num_logits == 0:
            return features
        head = linen.gathered(nn.Dense, self, "float32", "head")
        return head(self.num_logits, kernel_init=linen.kernel_init, name="head")(features)

    def _embedded(self, images: Array) -> tuple[Array, Array | None]:
        """Tokens [B, H, W, C] of patches, and a bias [C] if it is yet to be added."""
        if self.kernels == "fused" and not self.is_initializing():
            # With the position embeddings, whose gradient is smaller by the batch.
            params = self.variables["params"]["patch_embedding"]
            kernel, bias = (
                linen.gather_parameter(f"patch_embedding/{name}", params[name], self.compute_dtype)
                for name in ("kernel", "bias")
            )
            with jax.named_scope("patch_embedding"):
                return linen.convolve_patches(images.astype(self.compute_dtype), kernel), bias
        patch = (self.patch_size, self.patch_size)
        embed = linen.gathered(nn.Conv, self, self.compute_dtype, "patch_embedding")
        tokens = embed(
            self.dim,
            kernel_size=patch,
            strides=patch,
            padding="VALID",
            dtype=self.compute_dtype,
            kernel_init=linen.kernel_init,
            conv_general_dilated_cls=lambda: linen.convolve_patches,
            name="patch_embedding",
        )(images)
        return tokens, None

    def _check_images(self, images: Array, geometry: patching.Geometry) -> None:
        wanted = (*geometry.image_sides, self.num_channels)
        if images.ndim != 4 or images.shape[1:] != wanted:
            height, width, channels = wanted
            raise failures.BadInput(
                f"images have shape {images.shape}; this model takes [B, {height}, {width}, "
                f"{channels}]: resize them, or change NesT.image_size or NesT.num_channels."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise failures.BadInput(f"images are {images.dtype}; normalize them to float32 first.")
