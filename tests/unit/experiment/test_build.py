"""Runs whose parts do not fit each other, refused before anything is compiled."""

import jax
import pytest
from support import changing, commands
from support.refusals import refusal

from nest_dist.base import tree_paths
from nest_dist.experiment import build
from nest_dist.experiment import run as runs
from nest_dist.train.augment import group_mixing, mixing

MIXING = mixing.Mixing(0.8, 1.0)
GROUPS = group_mixing.GroupMixing(0.8, 1.0, rows=64)


@pytest.fixture(scope="module")
def run():
    return runs.load(["runs/quickstart.gin"], commands.TINY)


def built(run, **changes):
    """The run with changes by path, a dot written as __, on the first eight devices."""
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return build.build(changing.changed(run, values), jax.devices()[:8])


@pytest.mark.parametrize(
    ("binding", "text"),
    [
        ("MeshShape.pods = 2", "no parameter 'pods' (in bindings string line 1); known are data,"),
        ("MeshShape.rows = 0", "MeshShape.rows is 0; it must be at least 1, or -1 for the rest."),
        ("Rules.head = ()", "Rules has no parameter 'head' (in bindings string line 1); did you m"),
        (
            "Rules.heads = ('tensr',)",
            "a mesh axis in Rules.heads is 'tensr', which is unknown; did you mean tensor?",
        ),
        ("Rules.heads = 'tensor'", "Rules.heads is 'tensor', of type str; give a value of type"),
        ("Step.microbatches = 0", "Step.microbatches is 0; it must be at least 1."),
        ("Step.ema_decay = 1.0", "Step.ema_decay is 1.0; it must be in [0, 1)."),
        ("NesT.layers = 'rolled'", "NesT.layers is 'rolled'; give '"),
        ("NesT.remat = 'all'", "NesT.remat is 'all'; give 'none' or "),
    ],
)
def test_a_bad_binding_is_named(binding, text):
    with refusal(text):
        runs.load(["runs/quickstart.gin"], [binding])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"mesh__data": 3},
            "MeshShape data=3 does not divide 8 devices into a whole mesh; set one to",
        ),
        (
            {"global_batch": 30},
            (
                "Run.global_batch is 30, not a multiple of the mesh's 8 batch shards (8); the "
                "nearest that fit are 24 or 32: set it to one of them, or change MeshShape."
            ),
        ),
        (
            {"step__microbatches": 3},
            (
                "Run.global_batch is 32, not a multiple of the mesh's 8 batch shards x 3 "
                "microbatches (24); the nearest that fit are 24 or 48"
            ),
        ),
        (
            {"step__microbatches": 4, "step__inputs__mixing": MIXING},
            (
                "8 batch shards x 4 microbatches x 2 for the pairs of Inputs.mixing (64); the "
                "nearest that fit are 64: set"
            ),
        ),
        (
            {"step__inputs__mixing": GROUPS},
            (
                "Run.global_batch is 32, not a multiple of the mesh's 8 batch shards x 64 for the "
                "groups of Inputs.mixing (512); the nearest that fit are 512: set"
            ),
        ),
        (
            {"mesh__rows": 4},
            (
                "MeshShape.rows is 4; it must divide the rows of blocks of the first level (2): "
                "set it to 1, 2, or change NesT.image_size or NesT.block_side."
            ),
        ),
        (
            {"mesh__tensor": 2},
            "MeshShape.tensor is 2; it must divide NesT.heads (1): set it to 1, or change",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(run, changes, text):
    with refusal(text):
        built(run, **changes)


def test_a_schedule_in_steps_of_training_does_not_hinder_an_evaluation(run):
    changes = {"num_epochs": 1, "step__schedule__warmup_epochs": "20 steps"}
    trained = built(run, **changes)
    values = {name.replace("__", "."): value for name, value in changes.items()}
    evaluated = build.build(changing.changed(run, values), jax.devices()[:8], training=False)
    assert evaluated.intervals.num_steps < 20 < trained.intervals.num_steps
    names = [set(tree_paths.flatten(it.state_shapes)) for it in (trained, evaluated)]
    assert names[0] == names[1]
