"""Each schedule at its corners, and lengths in every unit."""

import numpy as np
import pytest
from support.refusals import refusal

from nest_dist.base import lengths
from nest_dist.train import schedules

PEAK = 0.1
CURVES = {
    "Cosine": (schedules.Cosine(1), {0: 0, 5: 0.05, 10: 0.1, 60: 0.05, 110: 0}),
    "Cosine to a tenth": (schedules.Cosine(0, 0.01), {0: 0.1, 55: 0.055, 110: 0.01}),
    "Linear": (schedules.Linear(1), {0: 0, 5: 0.05, 10: 0.1, 60: 0.05, 110: 0}),
    "Linear to a tenth": (schedules.Linear(0, 0.01), {0: 0.1, 55: 0.055, 110: 0.01}),
    "Constant": (schedules.Constant(1), {0: 0, 5: 0.05, 10: 0.1, 110: 0.1}),
    "Constant at once": (schedules.Constant(), {0: 0.1, 110: 0.1}),
    "Stepped": (
        schedules.Stepped((5, "100 steps"), 1, factor=0.5),
        {5: 0.05, 10: 0.1, 49: 0.1, 50: 0.05, 99: 0.05, 100: 0.025, 110: 0.025},
    ),
    "WarmupStableDecay": (
        schedules.WarmupStableDecay(1, 2, 0.01),
        {5: 0.05, 10: 0.1, 90: 0.1, 100: 0.055, 110: 0.01},
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_schedule_has_its_values(name):
    schedule, points = CURVES[name]
    rate = schedule.build(PEAK, num_steps=110, steps_per_epoch=10)
    found = [rate(step) for step in points]
    np.testing.assert_allclose(found, list(points.values()), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("warmup", [1, "10 steps", "9.1%"])
def test_a_warm_up_is_told_in_epochs_steps_or_a_share_of_the_run(warmup):
    rate = schedules.Constant(warmup).build(PEAK, num_steps=110, steps_per_epoch=10)
    np.testing.assert_allclose([rate(5), rate(9), rate(10)], [0.05, 0.09, 0.1], rtol=1e-6)


def test_a_share_follows_the_length_of_the_run():
    assert [lengths.in_steps("5%", 10, steps) for steps in (20, 2000)] == [1, 100]
    assert lengths.in_steps("1 step", 10) == 1
    assert lengths.text("1 step") == "1 step"
    assert lengths.text(2.0) == "2 epochs"


def build(schedule):
    return schedule.build(PEAK, num_steps=10, steps_per_epoch=10)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: build(schedules.Cosine(1.0)),
            "Cosine.warmup_epochs is 1.0, which is 10 steps of a run of 10; lower it or raise",
        ),
        (
            lambda: build(schedules.Linear("100%")),
            "Linear.warmup_epochs is 100%, which is 10 steps of a run of 10; lower it or raise",
        ),
        (
            lambda: build(schedules.Cosine(0, final_learning_rate=0.2)),
            "Cosine.final_learning_rate is 0.2; it must be in [0, 0.1].",
        ),
        (
            lambda: build(schedules.Stepped(("8 steps", "4 steps"))),
            (
                "Stepped.at_epochs is ('8 steps', '4 steps'), which is at steps [8, 4] of a run of "
                "10 with 0 of warm-up; give ascending times between them."
            ),
        ),
        (
            lambda: build(schedules.Stepped((1,))),
            "which is at steps [10] of a run of 10",
        ),
        (
            lambda: build(schedules.WarmupStableDecay("4 steps", "7 steps")),
            (
                "WarmupStableDecay.decay_epochs is 7 steps, which is 7 steps; a run of 10 with 4 "
                "of warm-up has room for 1 to 6: change it."
            ),
        ),
        (
            lambda: schedules.Cosine("5 stps"),
            (
                "Cosine.warmup_epochs is '5 stps', which is no length; give a number of epochs "
                "(float), or a text such as '500 steps' or '5%'."
            ),
        ),
        (lambda: schedules.Constant("101%"), "Constant.warmup_epochs is '101%', which is no"),
        (lambda: schedules.Constant("-5 steps"), "'-5 steps', which is no length"),
        (lambda: schedules.Constant(-1), "Constant.warmup_epochs is -1; it must be at least 0"),
        (lambda: schedules.Constant(True), "Constant.warmup_epochs is True, of type bool; give"),
        (lambda: schedules.Stepped(("x",)), "Stepped.at_epochs is 'x', which is no length"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, text):
    with refusal(text) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_the_official_cosine_begins_one_step_later():
    usual, official = (build(schedules.Cosine("4 steps", first_step=first)) for first in (0, 1))
    for step in range(9):
        assert float(official(step)) == float(usual(step + 1))
    assert float(usual(0)) == 0 < float(official(0))
