"""timm's own logits, made by tests/golden/timm_reference.py, against ours; needs no PyTorch."""

import json
import pathlib

import jax
import numpy as np
import pytest
from support import drawn, family

from nest_dist.base import tree_paths
from nest_dist.pretrained import recognition, weights
from nest_dist.pretrained.formats import native, safetensors_file

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
# Both are float32 with sums in another order; the logits have the size of 3.
TOLERANCE = 1e-5


def logits_of(state, images, **hints):
    shapes = {name: leaf.shape for name, leaf in state.items()}
    known = {"nest_tiny": family.published("nest_tiny")}
    model = recognition.recognise(shapes, known, hints)
    assert model.gelu == "exact"
    params = tree_paths.unflatten(weights.from_format("timm", state, model))
    return jax.jit(model.apply)({"params": params}, images)


def test_weights_of_timm_give_the_logits_of_timm():
    stored, *_ = safetensors_file.read(GOLDEN / "timm_reduced.safetensors")
    images, expected = stored.pop("images"), stored.pop("logits")
    np.testing.assert_array_equal(images, drawn.images("reduced", (2, 48, 48, 3)))
    np.testing.assert_allclose(logits_of(stored, images, heads=3), expected, atol=TOLERANCE)


@pytest.mark.medium
@pytest.mark.parametrize("side", [224, 96])
def test_the_full_tiny_model_gives_the_logits_of_timm(side):
    expected = json.loads((GOLDEN / "timm_logits.json").read_text())[str(side)]
    model = family.published("nest_tiny", image_size=side)
    params = {n: np.broadcast_to(np.float32(0), s) for n, s in native.shapes_of(model).items()}
    state = {
        name: drawn.timm_weight(name, leaf.shape)
        for name, leaf in weights.to_format("timm", params, model).items()
    }
    images = drawn.images(str(side), (1, side, side, 3))
    np.testing.assert_allclose(logits_of(state, images), expected, atol=TOLERANCE)
