"""Batches of shipped recipes, bit by bit: what no dependency may change unseen.

NumPy, OpenCV and Grain promise none of these bits, so each version that is allowed is tried.
"""

import hashlib
import json
import os
import pathlib

import numpy as np
import pytest
from support import datasets

from nest_dist.experiment import run as runs

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "batches.json"
STEPS = (0, 7)
BATCH = 16
# Files and bindings of each; the data is made by `datasets`.
RECIPES = {
    "quickstart": (["runs/quickstart.gin"], ()),
    "fashion_mnist": (
        ["runs/fashion_mnist.gin"],
        ("Idx.class_names = ('a', 'b', 'c')", "Idx.folder = {root!r}"),
    ),
    "cifar": (["runs/cifar10_nest_tiny.gin"], ("PaddedCrop.side = 96", "num_classes = 3")),
    "imagenet": (["runs/nest_tiny_imagenet.gin"], ("num_classes = 3",)),
}


def loaded(name, root):
    """The run of a recipe on pictures below a folder."""
    files, bindings = RECIPES[name]
    if name == "fashion_mnist":
        datasets.idx(root, pictures_each=16)
    if name in ("cifar", "imagenet"):
        datasets.array_record(root, pictures_each=16)
        bindings = (*bindings, f"data_folder = {str(root)!r}", "evaluation_split = 'train'")
    return runs.load(files, [binding.format(root=str(root)) for binding in bindings])


def digests(run):
    """sha256 of images and labels of some training batches."""
    source, found = run.data.source.open(), {}
    for step in STEPS:
        batches = run.data.batches(
            source, seed=0, global_batch=BATCH, rows=np.arange(BATCH), first_step=step
        )
        batch = next(batches)
        for part in ("image", "label"):
            digest = hashlib.sha256(np.ascontiguousarray(batch[part]).tobytes()).hexdigest()
            found[f"{part} {step}"] = digest
        batches.close()
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_batches_of_a_recipe_are_the_same_as_ever(name, tmp_path):
    found = digests(loaded(name, tmp_path))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, name: found}, indent=2, sort_keys=True) + "\n")
        return
    assert found == golden[name]
