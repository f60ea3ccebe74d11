"""A folder of a run that holds known weights, without any training."""

import dataclasses
import pathlib
import typing

import cv2
import jax
import numpy as np
import pytest
from support import family

from nest_dist import NesT
from nest_dist.base import names
from nest_dist.checkpointing import keep, manager
from nest_dist.commands import recorded

CONFIGURATION = """
import nest_dist.data.crop
import nest_dist.data.pipeline as nest_dist2
import nest_dist.data.sources.digits as nest_dist3
import nest_dist.model.nest as nest_dist4
import nest_dist.train.pixels as nest_dist5

# Macros:
num_classes = 3

CentrePad.side = 16
EvaluationData.source = @evaluate/Digits()
EvaluationData.transforms = (@CentrePad(),)
evaluate/Digits.split = 'test'
NesT.block_repeats = (1, 1)
NesT.dim = 8
NesT.heads = 1
NesT.image_size = 16
NesT.name = None
NesT.num_channels = 1
NesT.num_classes = %num_classes
NesT.num_hierarchies = 2
NesT.patch_size = 4
Pixels.mean = (0.25,)
Pixels.standard_deviation = (0.5,)
"""
CLASS_NAMES = ("circle", "square", "star")


@dataclasses.dataclass(frozen=True)
class Trained:
    workdir: pathlib.Path
    model: NesT
    params: dict[str, np.ndarray]  # of step 7; those of step 3 are twice as large

    def logits(self, images: typing.Any) -> np.ndarray:
        """Of uint8 images [B, 16, 16, 1]."""
        normalised = (np.asarray(images, np.float32) / 255 - 0.25) / 0.5
        return np.asarray(self.model.apply({"params": names.unflatten(self.params)}, normalised))


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    model = recorded.Recorded(CONFIGURATION).build("NesT")
    params = family.random_params(model)
    workdir = tmp_path_factory.mktemp("trained")
    (workdir / "config.gin").write_text(CONFIGURATION)
    checkpoints = manager.Manager(workdir / "checkpoints", keep=keep.Keep())
    for step, factor in ((3, 2), (7, 1)):
        state = {
            "step": np.int32(step),
            "params": jax.tree.map(lambda leaf, f=factor: f * leaf, params),
            "optimizer": {"moments": params},
        }
        metadata = {"configuration": CONFIGURATION, "class_names": list(CLASS_NAMES)}
        checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), metadata, {})
    checkpoints.close()
    return Trained(workdir, model, names.flatten(params))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> tuple[list[str], np.ndarray]:
    """Paths of grey pictures of the model's size, and their pixels [B, 16, 16, 1]."""
    folder = tmp_path_factory.mktemp("pictures")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    paths = [str(folder / f"{index}.png") for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        assert cv2.imwrite(path, image)
    return paths, images
