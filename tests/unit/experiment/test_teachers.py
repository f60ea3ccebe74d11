"""The teacher of a run: what it fits, and what a step is given of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import changing, commands, family
from support.refusals import refusal

from nest_dist import NesT
from nest_dist.base import tree_paths
from nest_dist.commands import train
from nest_dist.experiment import build, resume, teachers
from nest_dist.experiment import run as runs
from nest_dist.train import inputs
from nest_dist.train.objectives import class_weights, classification, distillation, multi_label

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def run():
    run = runs.load(["runs/quickstart.gin"], [*commands.TINY, *commands.ONE_LEVEL])
    return with_objective(run, distillation.Distillation("it", teacher_dtype="bfloat16"))


def with_objective(run, objective, **more):
    return changing.changed(run, {"step.objective": objective, **more})


def weights(names=NAMES, **fields):
    """A NesT of another width, other layers and another normalization."""
    sizes = {"image_size": 16, "patch_size": 4, "dim": 12, "heads": 3, "num_channels": 1}
    more = {"num_hierarchies": 1, "block_repeats": (2,), "num_classes": len(names), **fields}
    model = NesT(**{**sizes, **more})
    params = tree_paths.flatten(family.random_params(model))
    scale = inputs.Normalize((0.25,) * model.num_channels, (0.5,) * model.num_channels)
    return teachers.TeacherWeights("it", model, params, scale, tuple(names))


def built(run, taught):
    return build.build(run, jax.devices()[:2], teacher=lambda _: taught)


def test_classes_of_a_teacher_are_compared_by_name():
    known = weights(("9", "x", *NAMES[:9]))
    assert known.columns(NAMES) == (2, 3, 4, 5, 6, 7, 8, 9, 10, 0)
    assert known.columns(()) == tuple(range(11))  # where the data is absent
    nameless = dataclasses.replace(weights(), class_names=())
    assert nameless.columns([f"class {name}" for name in NAMES]) == tuple(range(10))


@pytest.mark.parametrize(
    ("taught", "text"),
    [
        (weights(NAMES[:9]), "class '9' is not among the 9 classes of Distillation.teacher (0, 1,"),
        (
            dataclasses.replace(weights(NAMES[:9]), class_names=()),
            "Distillation.teacher is it, whose 9 classes have no names, and the data has 10; give",
        ),
        (weights(num_channels=3), "is it, for images of 3 channels, and NesT.num_channels is 1;"),
        (weights((), num_classes=0), "Distillation.teacher is it, which has no head; give a mod"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(run, taught, text):
    with refusal(text):
        _ = built(run, taught).step


def test_a_teacher_must_fit_the_mesh(run):
    with refusal("MeshShape.tensor is 2; it must divide NesT.heads of Distillation.teacher (3)"):
        meshed = changing.changed(run, {"mesh.data": 1, "mesh.tensor": 2})
        built(with_objective(meshed, run.step.objective, model=run.model.clone(heads=2)), weights())


def test_the_digest_is_that_of_weights_classes_and_normalization():
    one, params = weights(), dict(weights().params)
    params["head/bias"] = params["head/bias"] + 1
    others = (
        dataclasses.replace(one, params=params),
        dataclasses.replace(one, class_names=NAMES[::-1]),
        dataclasses.replace(one, normalize=inputs.Normalize((0.5,), (0.5,))),
    )
    moved = dataclasses.replace(one, source="elsewhere")
    assert moved.digest == one.digest
    assert len({one.digest, *(other.digest for other in others)}) == 4


def test_a_teacher_is_sharded_in_its_type_and_part_of_no_state(run):
    meshed = changing.changed(run, {"mesh.data": 1, "mesh.fsdp": 2})
    experiment, alone = built(meshed, weights()), built(plain(meshed), None)
    params = experiment.teacher.params()
    kernel = params["levels_0"]["layers_0"]["mlp"]["hidden"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert "fsdp" in str(kernel.sharding.spec)
    shapes = jax.tree.map(lambda leaf: leaf.shape, experiment.state_shapes)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, alone.state_shapes)
    assert experiment.training_flops > alone.training_flops
    assert resume.metadata(experiment, 0)["teacher"] == weights().digest
    assert "teacher" not in resume.metadata(alone, 0)


def plain(run):
    return with_objective(run, classification.Classification())


def test_a_step_takes_the_teacher_as_an_argument(run):
    experiment = built(run, weights())
    assert len(experiment.traced_train_step().in_avals[0]) == 3
    seen = []
    taught = experiment.taught(lambda *arguments: seen.append(arguments))
    taught("state", "batch")
    ((state, batch, params),) = seen
    assert (state, batch) == ("state", "batch")
    np.testing.assert_array_equal(
        params["head"]["bias"], weights().params["head/bias"].astype(jnp.bfloat16)
    )
    alone = built(plain(run), None)
    assert alone.taught(seen.append) == seen.append


@pytest.mark.medium
def test_weights_for_other_images_and_their_names_are_read(run, trained):
    config = distillation.Distillation(str(trained.workdir))
    larger = with_objective(run, config, **{"model.image_size": 32})
    found = train.teacher(larger)
    assert found.model.geometry().image_sides == (32, 32)
    assert found.class_names == ("circle", "square", "star")
    assert found.normalize == inputs.Normalize((0.25,), (0.5,))


@pytest.mark.slow
def test_names_without_trained_weights_are_refused(run):
    untrained = with_objective(run, distillation.Distillation("nest_micro"))
    with refusal("Distillation.teacher is nest_micro, the name of a variant, which has no trained"):
        train.teacher(untrained)
    model = train.teacher(untrained, may_be_untrained=True).model
    assert (model.dim, model.num_classes, model.geometry().image_sides) == (32, 10, (16, 16))
    with refusal("Distillation.teacher: nowhere is no file, no folder and no variant of NesT"):
        train.teacher(with_objective(run, distillation.Distillation("nowhere")))


def test_best_checkpoints_are_chosen_by_what_the_objective_measures(run):
    kept = {"checkpoints.best": 1, "cadence.save_every_epochs": 4}
    sets = multi_label.MultiLabel()
    with refusal("Retention.metric is eval/top_1, which is not measured with 10 classes by MultiL"):
        built(with_objective(run, sets, **kept), None)
    by_map = {**kept, "checkpoints.metric": "eval/mean_average_precision"}
    assert built(with_objective(run, sets, **by_map), None)
    with refusal("by Classification; set it to eval/top_1 or eval/top_5."):
        built(with_objective(run, classification.Classification(), **by_map), None)


@pytest.mark.medium
def test_a_head_starts_with_its_bias(run):
    biased = with_objective(run, multi_label.MultiLabel(head_bias=-10.0))
    experiment = built(biased, None)
    head = jax.eval_shape(experiment.step.init).params["head"]
    plain_step = dataclasses.replace(experiment.step, objective=multi_label.MultiLabel())
    first, zero = (
        jax.jit(lambda it=it: it.init().params)() for it in (experiment.step, plain_step)
    )
    assert head["bias"].shape == (10,)
    np.testing.assert_array_equal(first["head"]["bias"], -10)
    np.testing.assert_array_equal(first["head"]["kernel"], zero["head"]["kernel"])


def test_class_weights_come_from_the_counts_of_the_data(run):
    weights = class_weights.ClassWeights(by_counts=1.0)
    experiment = built(
        with_objective(run, classification.Classification(class_weights=weights)), None
    )
    factors = dict(experiment.step.objective.class_weights.given)
    counts = experiment.training_source.class_counts()
    influence = [factors[name] * n for name, n in zip(NAMES, counts, strict=True)]
    np.testing.assert_allclose(influence, sum(counts) / 10)
