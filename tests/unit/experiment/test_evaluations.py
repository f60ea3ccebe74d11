"""Evaluations of a run that do not fit it, or each other, are refused by name."""

import jax
import pytest
from support import changing, commands
from support.refusals import refusal

from nest_dist.experiment import build
from nest_dist.experiment import run as runs

TWO = "Run.evaluations = (@Evaluation(), @other/Evaluation())"


def load(*bindings):
    return runs.load(["runs/quickstart.gin"], [*commands.TINY, *bindings])


def built(*bindings, **changes):
    run = changing.changed(load(*bindings), {k.replace("__", "."): v for k, v in changes.items()})
    return build.build(run, jax.devices()[:8])


@pytest.mark.parametrize(
    ("bindings", "text"),
    [
        (["Run.evaluations = ()"], "Run.evaluations has no members; give one, as in Run.evaluati"),
        ([TWO], "two of Run.evaluations have the name ''; give each a name of its own, as in"),
        (["Evaluation.name = 'a b'"], "Evaluation.name is 'a b'; give a word of letters, digits"),
        (
            ["Evaluation.of_objective = False"],
            "Evaluation.of_objective is False and Evaluation.measures is empty, which measures not",
        ),
        (
            ["Evaluation.measures = (@KNearest(), @again/KNearest())"],
            "Evaluation '' gives eval/knn_20 twice; leave out a measure, or give the evaluations",
        ),
    ],
)
def test_evaluations_that_cannot_be_told_apart_are_refused(bindings, text):
    with refusal(text):
        load(*bindings)


@pytest.mark.parametrize(
    ("bindings", "text"),
    [
        (
            ["Evaluation.measures = (@KNearest(),)", "KNearest.k = 2000"],
            "KNearest.k is 2000, and there are 1438 reference examples; lower it, or give more in",
        ),
        (
            ["Evaluation.measures = (@FewShot(),)", "FewShot.level = 2"],
            "FewShot.level is 2, and the model has 2 levels; give 0 to 1, or None for what the",
        ),
        (
            ["Step.objective = @MultiLabel()", "Evaluation.measures = (@KNearest(),)"],
            (
                "Evaluation.measures has KNearest, which takes pictures of one class, and "
                "MultiLabel sets of classes; leave it out."
            ),
        ),
        (
            ["Retention.best = 1", "Retention.metric = 'eval/other/top_1'"],
            (
                "Retention.metric is eval/other/top_1, which is not measured with 10 classes by "
                "Classification; set it to eval/top_1 or eval/top_5."
            ),
        ),
        (
            ["Retention.best = 1", "Retention.metric = 'eval/knn_5'"],
            "Retention.metric is eval/knn_5, which is not measured with 10 classes by Classificat",
        ),
    ],
)
def test_what_does_not_fit_the_run_is_refused(bindings, text):
    with refusal(text):
        built(*bindings)


def test_the_best_checkpoint_may_be_that_of_any_evaluation():
    bindings = [
        TWO,
        "other/Evaluation.name = 'other'",
        "other/Evaluation.every_epochs = 2",
        "other/Evaluation.measures = (@KNearest(),)",
        "Retention.best = 1",
        "Retention.metric = 'eval/other/knn_20'",
        "Cadence.save_every_epochs = 2",
        "Run.early_stopping = @EarlyStopping()",
        "EarlyStopping.metric = 'eval/other/knn_20'",
    ]
    experiment = built(*bindings)
    assert experiment.intervals.evaluate_every == (180, 90)
    assert experiment.missing_evaluations(180, {"eval/examples": 359}) == (1,)
    assert experiment.missing_evaluations(90, {"eval/examples": 359}) == (1,)
    assert experiment.missing_evaluations(90, {"eval/other/examples": 359}) == ()
    assert experiment.missing_evaluations(10, {}) == ()
    # The first evaluation comes too rarely for the best checkpoint, the other one does not.
    with refusal("Retention.best is 1, but a checkpoint each 90 steps has no evaluation of its"):
        built(*bindings[:5], "Cadence.save_every_epochs = 2")
