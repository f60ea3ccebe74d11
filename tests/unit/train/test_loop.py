"""The loop, driven by plain functions."""

import math

import jax.numpy as jnp
import pytest

from nest_dist.base import failures
from nest_dist.train import loop

CADENCE = loop.Cadence(num_steps=10, log_every=2, evaluate_every=5, save_every=4)


class Record:
    """Callables for the loop whose state is the number of steps done."""

    def __init__(self, stop_at=None, nan_at=(), no_data_from=100, most_skipped=0, evaluates=True):
        self.events = []
        self.stop_at = stop_at  # calls of the step
        self.nan_at = nan_at
        self.no_data_from = no_data_from
        self.most_skipped = most_skipped
        self.evaluates = evaluates
        self.calls = 0

    def parts(self):
        return loop.Parts(
            step=self.step,
            batches=iter(range(100)),
            steps_done=lambda state: state,
            evaluate=lambda state: {"eval/top_1": state / 10} if self.evaluates else None,
            save=lambda step, state, measured, given: self.events.append(
                ("save", step, (state, measured.get("eval/top_1"), given))
            ),
            report=lambda step, metrics: self.events.append(("report", step, metrics)),
            stop_reached=lambda: self.calls == self.stop_at,
            global_batch=4,
            most_skipped=self.most_skipped,
        )

    def step(self, state, batch):
        self.calls += 1
        loss = math.nan if state + 1 in self.nan_at else float(state + 1)
        metrics = {"train/loss": loss, "train/applied": float(self.calls < self.no_data_from)}
        if self.most_skipped:
            metrics["train/skipped"] = float(math.isnan(loss))
        device = {name: jnp.float32(value) for name, value in metrics.items()}
        return state + int(metrics["train/applied"]), device

    def of(self, kind, name=None):
        return [
            (step, value if name is None else value[name])
            for event, step, value in self.events
            if event == kind and (name is None or name in value)
        ]


def test_everything_happens_when_it_is_due_and_after_the_last_step():
    record = Record()
    assert loop.run(0, 0, CADENCE, record.parts()) == 10
    assert record.of("save") == [(4, (4, None, 0)), (8, (8, None, 0)), (10, (10, 1.0, 0))]
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
    assert record.of("save") == [(10, (10, 1.0, 0))]


def test_a_stop_saves_what_was_done_and_says_so():
    record = Record(stop_at=7)
    with pytest.raises(failures.Preempted, match="stopped after step 7 of 10, saved"):
        loop.run(0, 0, CADENCE, record.parts())
    assert record.of("save") == [(4, (4, None, 0)), (7, (7, None, 0))]
    assert record.of("report", "train/loss")[-1] == (7, 7.0)


def test_a_stop_of_a_process_without_data_saves_the_last_whole_step():
    # Step 8, where a checkpoint is due, has no data: the one of step 7 is saved under its name.
    record = Record(stop_at=9, no_data_from=8)
    with pytest.raises(failures.Preempted, match="stopped after step 7 of 10, saved"):
        loop.run(0, 0, CADENCE, record.parts())
    assert record.of("save") == [(4, (4, None, 0)), (7, (7, None, 2))]
    assert [step for step, _ in record.of("report", "train/loss")] == [2, 4, 6, 7]


def test_a_stop_before_any_step_saves_nothing():
    record = Record(stop_at=2, no_data_from=1)
    with pytest.raises(failures.Preempted, match="stopped after step 4 of 10"):
        loop.run(4, 4, CADENCE, record.parts())
    assert record.events == []


def test_a_stop_during_an_evaluation_saves_the_step_without_it():
    record = Record(evaluates=False)
    with pytest.raises(failures.Preempted, match="stopped after step 5 of 10, saved"):
        loop.run(0, 0, CADENCE, record.parts())
    assert record.of("save") == [(4, (4, None, 0)), (5, (5, None, 0))]
    assert record.of("report", "eval/top_1") == []


@pytest.mark.parametrize("step", [3, 4])
def test_a_loss_that_is_no_number_ends_the_run(step):
    record = Record(nan_at=(step,))
    with pytest.raises(loop.NotFinite, match=f"train/loss is nan at step {step}; lower") as raised:
        loop.run(0, 0, CADENCE, record.parts())
    assert raised.value.step == step
    assert record.of("save") == []


def test_nothing_is_saved_after_a_loss_that_is_no_number_between_two_reports():
    cadence = loop.Cadence(num_steps=10, log_every=10, evaluate_every=10, save_every=4)
    record = Record(nan_at=(6,))
    with pytest.raises(loop.NotFinite, match="at step 6"):
        loop.run(0, 0, cadence, record.parts())
    assert [step for step, _ in record.of("save")] == [4]


def test_skipped_updates_are_counted_and_left_out_of_the_means():
    record = Record(nan_at=(3, 6), most_skipped=2)
    loop.run(0, 0, CADENCE, record.parts())
    assert record.of("report", "train/loss") == [(2, 1.5), (4, 4), (6, 5), (8, 7.5), (10, 9.5)]
    assert record.of("report", "train/skipped") == [(2, 0), (4, 1), (6, 2), (8, 2), (10, 2)]


def test_more_skipped_updates_than_the_limit_end_the_run():
    record = Record(nan_at=(3, 6), most_skipped=1)
    with pytest.raises(loop.NotFinite, match="2 updates were not finite up to step 6, and NotF"):
        loop.run(0, 0, CADENCE, record.parts())
