"""A folder of a run that holds known weights, without any training."""

import dataclasses
import json
import pathlib
import typing

import cv2
import jax
import numpy as np
import pytest
from support import family

from nest_dist import NesT
from nest_dist.base import tree_paths
from nest_dist.checkpointing import manager, retention
from nest_dist.config import run_json
from nest_dist.experiment import run as runs

BINDINGS = (
    "num_classes = 3",
    "CentrePad.side = 16",
    "EvaluationData.transforms = (@CentrePad(),)",
    "NesT.block_repeats = (1, 1)",
    "NesT.dim = 8",
    "NesT.heads = 1",
    "NesT.image_size = 16",
    "NesT.patch_size = 4",
    "Normalize.mean = (0.25,)",
    "Normalize.std = (0.5,)",
)
CLASS_NAMES = ("circle", "square", "star")


@dataclasses.dataclass(frozen=True)
class Trained:
    workdir: pathlib.Path
    model: NesT
    params: dict[str, np.ndarray]  # of step 7; those of step 3 are twice as large

    def logits(self, images: typing.Any) -> np.ndarray:
        """Of uint8 images [B, 16, 16, 1]."""
        normalized = (np.asarray(images, np.float32) / 255 - 0.25) / 0.5
        return np.asarray(
            self.model.apply({"params": tree_paths.unflatten(self.params)}, normalized)
        )


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    run, text = runs.parse(["runs/quickstart.gin"], BINDINGS)
    model = run.model
    params = family.random_params(model)
    workdir = tmp_path_factory.mktemp("trained")
    (workdir / "config.gin").write_text(text)
    (workdir / run_json.NAME).write_text(json.dumps(run_json.dump(run)))
    checkpoints = manager.Manager(workdir / "checkpoints", retention=retention.Retention())
    for step, factor in ((3, 2), (7, 1)):
        state = {
            "step": np.int32(step),
            "params": jax.tree.map(lambda leaf, f=factor: f * leaf, params),
            "optimizer": {"moments": params},
        }
        metadata = {"run": run_json.dump(run), "class_names": list(CLASS_NAMES)}
        checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), metadata)
    checkpoints.close()
    return Trained(workdir, model, tree_paths.flatten(params))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> tuple[list[str], np.ndarray]:
    """Paths of grey pictures of the model's size, and their pixels [B, 16, 16, 1]."""
    folder = tmp_path_factory.mktemp("pictures")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    paths = [str(folder / f"{index}.png") for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        assert cv2.imwrite(path, image)
    return paths, images
