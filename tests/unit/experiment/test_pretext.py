"""Runs without labels: what does not fit them, their headless model, and that they go on."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import commands
from support.refusals import refusal

from nest_dist.base import settings
from nest_dist.config import run_json
from nest_dist.experiment import build, changes
from nest_dist.experiment import run as runs
from nest_dist.train.objectives import pretext

MASKED = ("Step.objective = @MaskedImages()", "MaskedImages.unit = 8")
TWO_VIEWS = ("Step.objective = @TwoViews()", "TwoViews.width = 8", "TrainingData.views = 2")
OBJECTIVES = {"masked": MASKED, "two views": TWO_VIEWS}
MIXING = (
    "Inputs.mixing = @Mixing()",
    "Mixing.mixup_alpha = 0.8",
    "Mixing.cutmix_alpha = 1.0",
)
ERASING = ("Inputs.random_erasing = @RandomErasing()", "RandomErasing.probability = 0.5")


def built(*bindings, devices=2):
    run = runs.load(["runs/quickstart.gin"], [*commands.TINY, *bindings])
    return build.build(run, jax.devices()[:devices])


@pytest.mark.parametrize(
    ("bindings", "text"),
    [
        (
            (*MASKED, *MIXING),
            (
                "Inputs.mixing is @Mixing(), which changes images in a way that MaskedImages "
                "cannot learn from; set it to None."
            ),
        ),
        (
            (*TWO_VIEWS, *MIXING),
            "Inputs.mixing is @Mixing(), which changes images in a way that T",
        ),
        ((*MASKED, *ERASING), "Inputs.random_erasing is @RandomErasing(), which changes images"),
        ((MASKED[0],), "MaskedImages.unit is 32; squares of patches of 4 pixels that tile images"),
        (
            (*TWO_VIEWS, "Step.microbatches = 2"),
            (
                "Step.microbatches is 2, but TwoViews compares the examples of the whole batch; "
                "set it to 1, and use more devices if memory does not suffice."
            ),
        ),
        (
            (*TWO_VIEWS, "Step.reproducible_reduction = True"),
            (
                "Step.reproducible_reduction is True, but TwoViews compares the examples of the "
                "whole batch, which it would compute in shards; set it to False."
            ),
        ),
        (
            TWO_VIEWS[:2],
            "TrainingData.views is 1, TwoViews takes 2 of each picture; set it to 2.",
        ),
        (
            ("TrainingData.views = 2",),
            "TrainingData.views is 2, Classification takes 1 of each picture; set it to 1.",
        ),
        (
            (*MASKED, "Retention.best = 1"),
            (
                "Retention.metric is eval/top_1, which is not measured with 0 classes by "
                "MaskedImages; set it to eval/loss."
            ),
        ),
    ],
)
def test_what_does_not_fit_a_run_without_labels_is_named(bindings, text):
    with refusal(text):
        built(*bindings)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_model_has_no_head_and_the_objective_has_parameters_beside_it(objective):
    experiment = built(*OBJECTIVES[objective], "num_classes = 7")
    assert experiment.run.model.num_classes == 0
    params = experiment.state_shapes.params
    assert "head" not in params
    assert pretext.PARAMETERS in params
    assert all(entry.name for entry in experiment.audit())
    again = run_json.dump(built(*OBJECTIVES[objective]).run)
    assert again == experiment.document  # the number of classes makes no other run
    assert experiment.in_order(("others",)) is experiment


@pytest.mark.medium
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_goes_on_with_the_same_bits_and_measures_its_loss(objective):
    experiment = built(*OBJECTIVES[objective], *commands.ONE_LEVEL, "Step.ema_decay = 0.9")
    compiled = experiment.compiled_train_step()

    def trained(state, first, count):
        batches = experiment.training_batches(first)
        for _ in range(count):
            state, metrics = compiled(state, next(batches))
        batches.close()
        assert np.isfinite(metrics["train/loss"])
        return state

    middle = jax.tree.map(np.asarray, trained(experiment.init_state(), 0, 2))
    end = trained(experiment.init_state(), 0, 4)
    restored = jax.tree.map(
        lambda leaf, it: jax.device_put(leaf, it.sharding), middle, experiment.state_shapes
    )
    again = trained(restored, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, again, end)
    assert pretext.PARAMETERS in end.ema
    batches = experiment.evaluation_batches()
    batch = next(batches)
    batches.close()
    assert batch.keys() == {"image", "weight"}
    measured, _ = experiment.compiled_evaluation_step()(end.evaluated, batch)
    assert measured["loss"].shape == (experiment.run.global_batch,)
    assert bool(jnp.isfinite(measured["loss"]).all())


@functools.cache
def first_loss_of_masked(*bindings):
    experiment = built(*MASKED, *bindings)
    batches = experiment.training_batches(0)
    _, metrics = experiment.compiled_train_step()(experiment.init_state(), next(batches))
    batches.close()
    return metrics["train/loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "bindings",
    [
        ["Step.microbatches = 4"],
        pytest.param(["MeshShape.rows = 2"], marks=pytest.mark.slow),
        pytest.param(["MeshShape.data = 1", "MeshShape.fsdp = 2"], marks=pytest.mark.slow),
        pytest.param(
            ["Step.reproducible_reduction = True", "Step.reduction_shards = 4"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_masked_images_have_one_loss_in_microbatches_and_on_any_mesh(bindings):
    loss = first_loss_of_masked(*bindings)
    np.testing.assert_allclose(loss, first_loss_of_masked(), rtol=1e-5)


def test_a_checkpoint_from_before_there_were_views_belongs_to_the_same_run():
    document = built().document
    before = json.loads(json.dumps(document))
    del run_json.select(before, "data")["fields"]["views"]
    assert changes.between(before, document) == []
    two = built(*TWO_VIEWS).document
    (change,) = (it for it in changes.between(before, two) if it.binding == "TrainingData.views")
    assert change.effect is settings.Effect.ANOTHER_RUN
