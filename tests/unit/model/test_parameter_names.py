"""Checkpoints depend on every name and shape: `UPDATE_GOLDEN=1` rewrites the file, for review."""

import json
import os
import pathlib

import pytest
from support import family

from nest_dist.base import tree_paths

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "parameters.json"


def names_and_shapes(model):
    return {
        name: list(leaf.shape) for name, leaf in tree_paths.flatten(family.shapes(model)).items()
    }


@pytest.fixture(scope="module")
def golden():
    if os.environ.get("UPDATE_GOLDEN"):
        models = []
        for name in family.PUBLISHED:
            shapes = sorted(names_and_shapes(family.published(name)).items())
            lines = [f"    {json.dumps(key)}: {json.dumps(shape)}" for key, shape in shapes]
            models.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
        GOLDEN.write_text("{\n" + ",\n".join(models) + "\n}\n")
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", family.PUBLISHED)
def test_every_name_and_shape_of_a_published_model_is_as_recorded(name, golden):
    assert names_and_shapes(family.published(name)) == golden[name]
