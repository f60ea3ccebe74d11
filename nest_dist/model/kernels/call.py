"""How every kernel is called: its grid over blocks, its products, its interpretation on a CPU."""

import contextlib
import contextvars
import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from nest_dist.sharding import rules

Products = typing.Literal["float32", "bfloat16"]
Ref = typing.Any  # memory of a kernel; Pallas has no public type for it
Kernel = Callable[..., None]
Rounding = Callable[[Array], Array]
Shaped: typing.TypeAlias = Array | jax.ShapeDtypeStruct
Operand: typing.TypeAlias = tuple[Shaped, pl.BlockSpec]

# The contracted dimension of each matrix, 0 or 1.
NN, NT = (1, 0), (1, 1)

# Kinds of devices that have two cores.
TWO_CORES = ("TPU v4", "TPU v5")

# Of what stays the same while a core works: the compiler would keep two copies.
ONCE = pl.Buffered(1)

_INTERPRETED: contextvars.ContextVar[Products | None] = contextvars.ContextVar(
    "interpreted", default=None
)


@contextlib.contextmanager
def interpreted(products: Products = "float32") -> Iterator[None]:
    """While this is open, kernels run on the CPU; memory that nothing wrote is NaN.

    Args:
        products: type of the matrices that a kernel multiplies.
    """
    token = _INTERPRETED.set(products)
    try:
        yield
    finally:
        _INTERPRETED.reset(token)


def is_interpreted() -> bool:
    """Whether `interpreted` is open."""
    return _INTERPRETED.get() is not None


def products() -> Products:
    """The type of the matrices that kernels multiply: on a TPU bfloat16, as by its default."""
    return _INTERPRETED.get() or "bfloat16"


def exact(matrix: Array) -> Array:
    """The matrix itself: the `Rounding` that changes nothing."""
    return matrix


def dot(left: Array, right: Array, contracted: tuple[int, int] = NN) -> Array:
    """The product of two matrices, summed in float32."""
    if is_interpreted():  # XLA for CPUs lacks some products of bfloat16
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def reciprocal(x: Array) -> Array:
    """1 / x: as exact as the products."""
    return 1 / x if products() == "float32" else pl.reciprocal(x, approx=True)


def blocks_at_once(N: int, C: int) -> float:
    """Of a branch's forward step: narrow blocks alone would leave the matrix units waiting."""
    return min(8, 160_000 / C**2, 1600 / N)


def merged(T: int, N: int) -> int:
    """How many small blocks a kernel takes as one: together they have 128 tokens at most."""
    return _divisor(T, 128 / N)


def tiled_bytes(rows: int, columns: int, dtype: str = "float32") -> int:
    """Bytes of a matrix on the chip: registers of 128 columns and 32 bytes of rows."""
    size = jnp.dtype(dtype).itemsize
    sublanes = 32 // size
    return -(-rows // sublanes) * sublanes * -(-columns // 128) * 128 * size


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a kernel walks over the blocks of all images.

    Each core takes its share of the images. For some blocks of an image, it goes through these
    images; then come the next blocks. A step takes a few images and blocks at once.

    Attributes:
        cores: of a device.
        images: of a step.
        blocks: of a step, of each image.
        shape: images and blocks of all steps.
    """

    cores: int
    images: int
    blocks: int
    shape: tuple[int, int]

    @property
    def turns(self) -> int:
        """Steps in which a core goes through its images."""
        return self.shape[0] // (self.cores * self.images)

    def by_block(self, array: Shaped) -> Operand:
        """Of each block: [B, T, ...] gives the kernel [images, blocks, ...].

        Or an image as rows of blocks [B, R, S, W, C], which gives [images, S, W, C].
        """
        blocks = None if array.ndim == 5 else self.blocks
        rest, turns = array.shape[2:], self.turns
        return array, pl.BlockSpec(
            (self.images, blocks, *rest),
            lambda core, block, turn: (core * turns + turn, block, *(0 for _ in rest)),
        )

    def whole(self, array: Shaped) -> Operand:
        """The same at each step."""
        return array, pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim, pipeline_mode=ONCE)

    def of_position(self, array: Shaped) -> Operand:
        """Of blocks [T, ...], the same for all images: gives the kernel [blocks, ...]."""
        rest = array.shape[1:]
        return array, pl.BlockSpec(
            (self.blocks, *rest), lambda core, block, turn: (block, *(0 for _ in rest))
        )

    def total(self, *shape: int) -> Operand:
        """A sum over all steps of a core: [cores, *shape], gives the kernel `shape`."""
        result = jax.ShapeDtypeStruct((self.cores, *shape), jnp.float32)
        return result, pl.BlockSpec(
            (None, *shape),
            lambda core, block, turn: (core, *(0 for _ in shape)),
            pipeline_mode=ONCE,
        )

    def total_of_position(self, *shape: int) -> Operand:
        """A sum over the images of a core: [cores, T, ...], gives the kernel [blocks, ...]."""
        result = jax.ShapeDtypeStruct((self.cores, *shape), jnp.float32)
        return result, pl.BlockSpec(
            (None, self.blocks, *shape[1:]),
            lambda core, block, turn: (core, block, *(0 for _ in shape[1:])),
        )

    def scratch(self, matrix: tuple[int, int], dtype: jax.typing.DTypeLike) -> Shaped:
        """Memory of a step for a matrix of each block."""
        return jax.ShapeDtypeStruct((self.images, self.blocks, *matrix), dtype)


def grid(at_once: float, images: int, blocks: int, columns: int | None = None) -> Grid:
    """A grid of about `at_once` blocks a step, by divisors of the numbers that are there.

    Args:
        at_once: the most.
        images: of a device.
        blocks: of each image.
        columns: blocks of a step if they must be a row of the image.
    """
    cores = 2 if _kind() in TWO_CORES and images % 2 == 0 else 1
    of_image = columns or _divisor(blocks, at_once)
    several = at_once / of_image if columns or of_image == blocks else 1
    # Powers of two: so the images of a step are in one step of any grid with more. A backward step
    # reads what its forward step wrote, unless all of its images were dropped.
    return Grid(cores, _power_of_two(images // cores, several), of_image, (images, blocks))


def memory_limit(kind: str) -> int:
    """Bytes on a chip of this kind that a kernel may use: on TPU v4 all there are."""
    return (16 if kind == "TPU v4" else 32) * 2**20


def _kind() -> str:
    """Of the devices that the active mesh has."""
    context = rules.active()
    return context.mesh.devices.flat[0].device_kind if context else ""


def _divisor(number: int, most: float) -> int:
    return max(each for each in range(1, number + 1) if number % each == 0 and each <= max(most, 1))


def _power_of_two(number: int, most: float) -> int:
    """The largest that divides a number and is at most `most`."""
    power = 1
    while number % (2 * power) == 0 and 2 * power <= most:
        power *= 2
    return power


def in_scalars(factor: Array) -> Operand:
    """Numbers [B] of all images, for `unless_dropped`."""
    return factor, pl.BlockSpec(memory_space=pltpu.SMEM)


def run(
    kernel: Kernel,
    name: str,
    grid: Grid,
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Sequence[Shaped] = (),
    memory: int | None = None,
) -> list[Array]:
    """Calls `kernel` at each step of a grid.

    Args:
        kernel: of references to the inputs, the outputs and the scratch memory.
        name: of the kernel.
        grid: made the operands.
        inputs: arrays.
        outputs: shapes.
        scratch: memory of a step.
        memory: bytes on the chip; None for `memory_limit`.
    """
    results: list[Array] = pl.pallas_call(
        kernel,
        name=name,
        grid=(grid.cores, grid.shape[1] // grid.blocks, grid.turns),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        scratch_shapes=[pltpu.VMEM(each.shape, each.dtype) for each in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=memory or memory_limit(_kind()),
        ),
        interpret=pltpu.InterpretParams(uninitialized_memory="nan") if is_interpreted() else False,
    )(*(array for array, _ in inputs))
    return results


def first_turn() -> Array:
    """Whether this step is the first for its blocks."""
    return pl.program_id(2) == 0


def first_step() -> Array:
    """Whether this step is the first of its core."""
    return (pl.program_id(1) == 0) & first_turn()


def every_block(ref: Ref) -> list[tuple[int, int]]:
    """The indices of all blocks of a step, of a reference [images, blocks, ...]."""
    images, blocks = ref.shape[:2]
    return [(image, block) for image in range(images) for block in range(blocks)]


def unless_dropped(
    factor_ref: Ref, x_ref: Ref, y_ref: Ref
) -> Callable[[Callable[[list[Array]], None]], None]:
    """Computes a branch from the factor of each image, unless all of them are 0: then y is x.

    Args:
        factor_ref: the factors of all images.
        x_ref: [images, blocks, ...] of the step.
        y_ref: as `x_ref`.
    """
    images = x_ref.shape[0]
    first = (pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)) * images
    factors = [factor_ref[first + image] for image in range(images)]
    needed = functools.reduce(jnp.logical_or, [factor != 0 for factor in factors])

    def decide(compute: Callable[[list[Array]], None]) -> None:
        pl.when(needed)(lambda: compute(factors))

        @pl.when(jnp.logical_not(needed))
        def pass_on() -> None:
            y_ref[...] = x_ref[...]

    return decide
