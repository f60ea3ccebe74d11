"""The rule of early stopping on numbers alone."""

import math

import pytest
from support.refusals import refusal

from nest_dist.checkpointing import retention
from nest_dist.train import early_stopping


def history(values, rule, name="eval/top_1"):
    """After evaluations at the steps 10, 20, ..."""
    found = early_stopping.NONE
    for number, value in enumerate(values, 1):
        found = rule.after(found, 10 * number, {name: value})
    return found


def ends_at(values, rule, name="eval/top_1"):
    """The number of evaluations after which the run ends, or None."""
    due = (rule.is_due(history(values[:end], rule, name)) for end in range(1, len(values) + 1))
    return next((end for end, it in enumerate(due, 1) if it), None)


def test_a_run_ends_after_evaluations_in_a_row_without_improvement():
    rule = early_stopping.EarlyStopping(patience=2)
    assert ends_at([0.1, 0.2, 0.2, 0.3, 0.1, 0.3, 0.4], rule) == 6
    assert ends_at([0.1, 0.2, 0.2, 0.3, 0.3, 0.4], rule) is None
    found = history([0.1, 0.3, 0.2], rule)
    assert found == early_stopping.History(step=30, best=0.3, best_step=20, without=1)


def test_an_improvement_must_be_large_enough_and_a_loss_improves_downwards():
    rule = early_stopping.EarlyStopping(patience=1, least_improvement=0.05)
    assert ends_at([0.1, 0.2, 0.24], rule) == 3
    rule = early_stopping.EarlyStopping("eval/loss", patience=1)
    assert ends_at([3.0, 2.0, 2.5, 1.0], rule, "eval/loss") == 3


def test_what_is_not_finite_never_improves():
    rule = early_stopping.EarlyStopping(patience=3)
    assert ends_at([math.nan, math.nan, math.nan], rule) == 3
    assert ends_at([math.nan, 0.1, math.inf, 0.2], rule) is None
    assert "best at step 0, none" in rule.reason(history([math.nan], rule))


def test_an_evaluation_counts_once():
    rule = early_stopping.EarlyStopping(patience=2)
    found = history([0.3, 0.2], rule)
    assert rule.after(found, 20, {"eval/top_1": 0.2}) == found


def test_the_reason_is_told():
    rule = early_stopping.EarlyStopping(patience=2)
    assert rule.reason(history([0.3, 0.2, 0.1], rule)) == (
        "ended early after step 30: eval/top_1 was best at step 10, 0.3, and has not improved in 2 "
        "evaluations"
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"metric": "eval/top1"}, "EarlyStopping.metric is 'eval/top1', which is unknown; did you"),
        ({"patience": 0}, "EarlyStopping.patience is 0; it must be at least 1."),
        ({"least_improvement": -1.0}, "EarlyStopping.least_improvement is -1.0; it must be at"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields, text):
    with refusal(text):
        early_stopping.EarlyStopping(**fields)


@pytest.mark.parametrize(
    ("kept", "every", "text"),
    [
        (
            {},
            (4, 4),
            (
                "EarlyStopping.metric is eval/loss, by which no best checkpoint is retained; set "
                "Retention.best to 1 and Retention.metric to 'eval/loss'."
            ),
        ),
        ({"best": 1}, (4, 4), "by which no best checkpoint is retained"),
        (
            {"best": 1, "metric": "eval/loss"},
            (4, 2),
            (
                "Run.early_stopping needs a checkpoint at each evaluation, but there is one each 4 "
                "steps and an evaluation each 2; give Cadence.save_every_epochs the value of"
            ),
        ),
    ],
)
def test_a_best_checkpoint_that_would_not_stay_is_refused(kept, every, text):
    rule = early_stopping.EarlyStopping("eval/loss")
    rule.require_kept(retention.Retention(best=1, metric="eval/loss"), 2, 2)
    with refusal(text):
        rule.require_kept(retention.Retention(**kept), *every)
