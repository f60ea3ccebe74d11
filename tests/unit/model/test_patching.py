import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.model import patching


def test_cutting_into_blocks_and_putting_them_back_gives_the_same_image():
    image = jnp.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    blocks = patching.to_blocks(image, block_side=4)
    assert blocks.shape == (2, 6, 16, 3)
    np.testing.assert_array_equal(patching.to_image(blocks, grid=(2, 3)), image)


def test_blocks_and_their_tokens_come_row_by_row():
    rows, columns = jnp.meshgrid(jnp.arange(4), jnp.arange(6), indexing="ij")
    image = jnp.stack([rows, columns], axis=-1)[None]
    blocks = patching.to_blocks(image, block_side=2)
    np.testing.assert_array_equal(blocks[0, 4], [[2, 2], [2, 3], [3, 2], [3, 3]])


def test_a_patch_holds_its_pixels_row_by_row():
    image = jnp.arange(6 * 4).reshape(1, 6, 4, 1)
    patches = patching.to_patches(image, patch_size=2)
    assert patches.shape == (1, 3, 2, 4)
    np.testing.assert_array_equal(patches[0, 1, 1], [10, 11, 14, 15])


@pytest.mark.parametrize(
    ("image_size", "patch_size", "levels", "block_side", "expected_side", "grids"),
    [
        (224, 4, 3, None, 14, ((4, 4), (2, 2), (1, 1))),
        (32, 1, 4, None, 4, ((8, 8), (4, 4), (2, 2), (1, 1))),
        (448, 4, 3, 14, 14, ((8, 8), (4, 4), (2, 2))),
        (384, 4, 3, None, 24, ((4, 4), (2, 2), (1, 1))),
        ((224, 448), 4, 3, None, 14, ((4, 8), (2, 4), (1, 2))),
        (16, 4, 1, None, 4, ((1, 1),)),
    ],
)
def test_the_grid_of_blocks_halves_at_each_level(
    image_size, patch_size, levels, block_side, expected_side, grids
):
    geometry = patching.geometry(image_size, patch_size, levels, block_side)
    assert geometry.block_side == expected_side
    assert geometry.grids == grids


def test_a_side_that_cannot_be_cut_is_refused_with_the_nearest_that_can():
    with pytest.raises(
        failures.BadInput,
        match=r"image_size height is 225, not a multiple of .* \(16\); .* 224 or 240",
    ):
        patching.geometry(225, 4, 3)
    with pytest.raises(
        failures.BadInput,
        match=r"image_size width is 50, not a multiple of .* x block_side \(16\); .* 48 or 64",
    ):
        patching.geometry((32, 50), 4, 2, block_side=2)


def test_a_wide_image_that_only_blocks_of_one_token_would_cut_is_refused():
    with pytest.raises(
        failures.BadInput,
        match=r"is \(224, 304\): .* have \(14, 19\) tokens, which only .* multiples of 32, or",
    ):
        patching.geometry((224, 304), 4, 3)
    assert patching.geometry((224, 304), 4, 3, block_side=1).block_side == 1
