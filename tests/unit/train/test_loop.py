"""The loop, driven by plain functions."""

import math

import jax.numpy as jnp
import pytest

from nest_dist.base import failures
from nest_dist.train import loop

CADENCE = loop.Cadence(num_steps=10, log_every=2, evaluate_every=5, save_every=4)


class Record:
    """Callables for the loop whose state is the number of steps done."""

    def __init__(self, stop_at=None, nan_at=None):
        self.events = []
        self.stop_at = stop_at
        self.nan_at = nan_at

    def parts(self):
        return loop.Parts(
            step=self.step,
            batches=iter(range(100)),
            evaluate=lambda state: {"eval/top_1": state / 10},
            save=lambda step, state, measured: self.events.append(("save", step, state)),
            report=lambda step, metrics: self.events.append(("report", step, metrics)),
            stop_reached=lambda step: step == self.stop_at,
            global_batch=4,
        )

    def step(self, state, batch):
        loss = math.nan if state + 1 == self.nan_at else float(state + 1)
        return state + 1, {"train/loss": jnp.float32(loss)}

    def of(self, kind, name=None):
        return [
            (step, value if name is None else value[name])
            for event, step, value in self.events
            if event == kind and (name is None or name in value)
        ]


def test_everything_happens_when_it_is_due_and_after_the_last_step():
    record = Record()
    assert loop.run(0, 0, CADENCE, record.parts()) == 10
    assert record.of("save") == [(4, 4), (8, 8), (10, 10)]
    assert record.of("report", "eval/top_1") == [(5, 0.5), (10, 1.0)]


def test_metrics_are_means_of_their_window_each_step_counted_once():
    record = Record()
    loop.run(0, 0, CADENCE, record.parts())
    assert record.of("report", "train/loss") == [(2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5), (10, 9.5)]


def test_metrics_are_read_one_log_step_late_but_before_a_checkpoint():
    record = Record()
    loop.run(0, 0, CADENCE, record.parts())
    order = [event[:2] for event in record.events]
    assert order.index(("report", 4)) < order.index(("save", 4))
    assert order.index(("report", 8)) < order.index(("save", 8))
    # Step 5 evaluates; the window of steps 5 and 6 is still open then.
    assert order.index(("report", 6)) > order.index(("save", 4))


def test_a_resumed_loop_goes_on_with_the_next_step():
    record = Record()
    loop.run(8, 8, CADENCE, record.parts())
    assert record.of("report", "train/loss") == [(10, 9.5)]
    assert record.of("save") == [(10, 10)]


def test_a_stop_saves_what_was_done_and_says_so():
    record = Record(stop_at=7)
    with pytest.raises(failures.Preempted, match="stopped after step 7 of 10, saved"):
        loop.run(0, 0, CADENCE, record.parts())
    assert record.of("save") == [(4, 4), (7, 7)]
    assert record.of("report", "train/loss")[-1] == (7, 7.0)


def test_a_loss_that_is_no_number_ends_the_run():
    record = Record(nan_at=3)
    with pytest.raises(failures.Failure, match="train/loss is nan at step 4; lower"):
        loop.run(0, 0, CADENCE, record.parts())
    assert record.of("save") == []
