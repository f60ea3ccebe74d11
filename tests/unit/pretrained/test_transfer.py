import numpy as np
import pytest
from support import family

from nest_dist.base import failures, tree_paths
from nest_dist.model import patching
from nest_dist.pretrained import transfer


def flat(model, seed):
    return tree_paths.flatten(family.random_params(model, seed))


def transferred(source, model):
    return transfer.transfer(source, flat(source, 0), model, flat(model, 1))


def test_the_same_model_loads_every_parameter():
    model = family.small("multi_head")
    params, lines = transferred(model, model)
    assert all(np.array_equal(params[name], leaf) for name, leaf in flat(model, 0).items())
    assert lines == [f"{len(params)} parameters loaded as they are"]


def test_other_classes_reinitialize_the_head_alone():
    source = family.small("multi_head")
    model = family.small("multi_head", num_classes=9)
    params, lines = transferred(source, model)
    assert lines == [
        f"{len(params) - 2} parameters loaded as they are",
        "reinitialized for other classes: head/bias, head/kernel",
    ]
    np.testing.assert_array_equal(params["head/kernel"], flat(model, 1)["head/kernel"])
    np.testing.assert_array_equal(params["norm/scale"], flat(source, 0)["norm/scale"])
    headless, _ = transferred(source, family.small("multi_head", num_classes=0))
    assert not any(name.startswith("head/") for name in headless)


def test_a_position_embedding_keeps_its_position_in_the_image_when_the_image_grows():
    source = family.small("multi_head")  # 8 x 8 tokens, then 4 x 4
    model = family.small("multi_head", image_size=96)  # 24 x 24, then 12 x 12
    start = flat(source, 0)
    # A slope over the image: the value of a token tells its position.
    for level, side in enumerate((8, 4)):
        centres = (np.arange(side, dtype=np.float32) + 0.5) / side
        plane = np.broadcast_to(centres[None, :, None, None], (1, side, side, 12 * 2**level))
        name = f"levels_{level}/position_embedding"
        start[name] = np.asarray(patching.to_blocks(plane, 4))
    params, lines = transfer.transfer(source, start, model, flat(model, 1))
    for level, side in enumerate((24, 12)):
        name = f"levels_{level}/position_embedding"
        plane = patching.to_image(params[name], (side // 12, side // 12))
        expected = (np.arange(side) + 0.5) / side
        inner = slice(side // 4, -side // 4)  # a cubic kernel bends a slope near its ends
        np.testing.assert_allclose(plane[0, :, 0, 0][inner], expected[inner], atol=0.02)
        np.testing.assert_allclose(
            plane[0], np.broadcast_to(plane[:, :, :1, :1], plane.shape)[0], rtol=1e-5
        )
    (resized,) = lines[1:]
    assert resized == (
        "resized to another image: levels_0/position_embedding [1, 4, 16, 12] to [1, 4, 144, 12], "
        "levels_1/position_embedding [1, 1, 16, 24] to [1, 1, 144, 24]"
    )


def test_other_blocks_of_the_same_image_only_move_position_embeddings():
    source = family.small("multi_head")
    model = family.small("multi_head", block_side=2)
    params, lines = transferred(source, model)
    assert lines[1].count("position_embedding") == 2
    before = patching.to_image(flat(source, 0)["levels_0/position_embedding"], (2, 2))
    after = patching.to_image(params["levels_0/position_embedding"], (4, 4))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_square_weights_can_start_a_wide_model():
    source = family.small("wide_image", image_size=16)
    params, lines = transferred(source, family.small("wide_image"))
    assert params["levels_0/position_embedding"].shape == (1, 32, 4, 8)
    assert lines[1].count("position_embedding") == 2


@pytest.mark.parametrize(
    ("field", "value"), [("dim", 24), ("block_repeats", (1, 2)), ("patch_size", 2), ("heads", 2)]
)
def test_another_architecture_is_refused(field, value):
    source = family.small("multi_head")
    model = family.small("multi_head", **{field: value})
    with pytest.raises(
        failures.BadInput,
        match=rf"NesT.{field} is .*, the weights to start from have .*; only image_size, num_chan",
    ):
        transferred(source, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (3, 1, "3 channels to 1: the sum over channels"),
        (1, 3, "1 channels to 3: each has an equal share of the sum over channels"),
        (3, 7, "3 channels to 7: each has an equal share of the sum over channels"),
        (3, 4, "3 channels to 4: the colours as they are, alpha from zero"),
    ],
)
def test_the_first_convolution_is_adapted_to_other_channels(before, after, line):
    source = family.small("multi_head", num_channels=before)
    model = family.small("multi_head", num_channels=after)
    params, lines = transferred(source, model)
    assert lines[1] == f"patch_embedding/kernel adapted from {line}"
    assert lines[0] == f"{len(params) - 1} parameters loaded as they are"
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((2, 32, 32, before if after == 4 else 1)).astype(np.float32)
    opaque = np.ones((2, 32, 32, 1), np.float32)
    grown = np.concatenate([seen, opaque], -1) if after == 4 else seen.repeat(after, -1)
    wanted, found = (
        each.apply({"params": tree_paths.unflatten(values)}, images)
        for each, values, images in (
            (source, flat(source, 0), seen if after == 4 else seen.repeat(before, -1)),
            (model, params, grown),
        )
    )
    # Sums over channels are taken in another order.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
