"""The loop, driven by plain functions."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from nest_dist.base import failures
from nest_dist.train import loop, metrics_log

INTERVALS = loop.Intervals(num_steps=10, log_every=2, evaluate_every=(5,), save_every=4)


class Record:
    """Callables for the loop whose state is the number of steps done."""

    def __init__(
        self,
        stop_at=None,
        nan_at=(),
        batches=100,
        most_skipped=0,
        evaluates=True,
        nan_evaluations=(),
    ):
        self.events = []
        self.stop_at = stop_at  # calls of the step
        self.nan_at = nan_at
        self.batches = batches
        self.most_skipped = most_skipped
        self.evaluates = evaluates
        self.nan_evaluations = nan_evaluations
        self.calls = 0

    def parts(self):
        return loop.LoopCallbacks(
            step=self.step,
            batches=iter(range(self.batches)),
            steps_done=lambda state: state,
            evaluate=self.evaluate,
            save=lambda step, state: self.events.append(("save", step, state)),
            record=lambda step, metrics: self.events.append(("record", step, metrics)),
            report=lambda step, metrics: self.events.append(("report", step, metrics)),
            stop_reached=lambda: self.calls == self.stop_at,
            global_batch=4,
            most_skipped=self.most_skipped,
        )

    def evaluate(self, state, number):
        if not self.evaluates:
            return None
        return {"eval/top_1": math.nan if state in self.nan_evaluations else state / 10}

    def step(self, state, batch):
        self.calls += 1
        loss = math.nan if state + 1 in self.nan_at else float(state + 1)
        metrics = {"train/loss": loss}
        if self.most_skipped:
            metrics["train/skipped"] = float(math.isnan(loss))
        device = {name: jnp.float32(value) for name, value in metrics.items()}
        return state + 1, device

    def of(self, kind, name=None):
        return [
            (step, value if name is None else value[name])
            for event, step, value in self.events
            if event == kind and (name is None or name in value)
        ]


def test_everything_happens_when_it_is_due_and_after_the_last_step():
    record = Record()
    assert loop.run(0, 0, INTERVALS, record.parts()) == 10
    assert record.of("save") == [(4, 4), (8, 8), (10, 10)]
    assert record.of("report", "eval/top_1") == [(5, 0.5), (10, 1.0)]


def test_metrics_are_means_of_their_window_each_step_counted_once():
    record = Record()
    loop.run(0, 0, INTERVALS, record.parts())
    assert record.of("report", "train/loss") == [(2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5), (10, 9.5)]


def test_metrics_are_read_one_log_step_late_but_before_a_checkpoint():
    record = Record()
    loop.run(0, 0, INTERVALS, record.parts())
    order = [event[:2] for event in record.events]
    assert order.index(("report", 4)) < order.index(("save", 4))
    assert order.index(("report", 8)) < order.index(("save", 8))
    # Step 5 evaluates; the window of steps 5 and 6 is still open then.
    assert order.index(("report", 6)) > order.index(("save", 4))


def test_a_resumed_loop_goes_on_with_the_next_step():
    record = Record()
    loop.run(8, 8, INTERVALS, record.parts())
    assert record.of("report", "train/loss") == [(10, 9.5)]
    assert record.of("save") == [(10, 10)]


@pytest.mark.parametrize("batches", [100, 7])
def test_a_stop_saves_what_was_done_and_says_so(batches):
    # The batch of the next step is there already, or never comes.
    record = Record(stop_at=7, batches=batches)
    with pytest.raises(failures.Preempted, match="stopped after step 7 of 10, saved"):
        loop.run(0, 0, INTERVALS, record.parts())
    assert record.of("save") == [(4, 4), (7, 7)]
    assert record.of("report", "train/loss")[-1] == (7, 7.0)


def test_a_stop_right_after_a_checkpoint_saves_nothing_twice():
    record = Record(stop_at=4)
    with pytest.raises(failures.Preempted, match="stopped after step 4 of 10, saved"):
        loop.run(0, 0, INTERVALS, record.parts())
    assert record.of("save") == [(4, 4)]


@pytest.mark.parametrize("batches", [0, 100])
def test_a_stop_before_any_step_saves_nothing(batches):
    record = Record(stop_at=0, batches=batches)
    with pytest.raises(failures.Preempted, match="stopped after step 4 of 10"):
        loop.run(4, 4, INTERVALS, record.parts())
    assert record.events == []


def test_a_stop_during_an_evaluation_saves_the_step_without_it():
    record = Record(evaluates=False)
    with pytest.raises(failures.Preempted, match="stopped after step 5 of 10, saved"):
        loop.run(0, 0, INTERVALS, record.parts())
    assert record.of("save") == [(4, 4), (5, 5)]
    assert record.of("report", "train/loss")[-1] == (5, 5.0)
    assert record.of("report", "eval/top_1") == []


@pytest.mark.parametrize("step", [3, 4])
def test_a_loss_that_is_no_number_ends_the_run(step):
    record = Record(nan_at=(step,))
    with pytest.raises(
        metrics_log.NonFinite, match=f"train/loss is nan at step {step}; lower"
    ) as raised:
        loop.run(0, 0, INTERVALS, record.parts())
    assert raised.value.step == step
    assert record.of("save") == []


def test_nothing_is_saved_after_a_loss_that_is_no_number_between_two_reports():
    intervals = loop.Intervals(num_steps=10, log_every=10, evaluate_every=(10,), save_every=4)
    record = Record(nan_at=(6,))
    with pytest.raises(metrics_log.NonFinite, match="at step 6"):
        loop.run(0, 0, intervals, record.parts())
    assert [step for step, _ in record.of("save")] == [4]


def test_skipped_updates_are_counted_and_left_out_of_the_means():
    record = Record(nan_at=(3, 6), most_skipped=2)
    loop.run(0, 0, INTERVALS, record.parts())
    assert record.of("report", "train/loss") == [(2, 1.5), (4, 4), (6, 5), (8, 7.5), (10, 9.5)]
    assert record.of("report", "train/skipped") == [(2, 0), (4, 1), (6, 2), (8, 2), (10, 2)]


def test_each_step_that_is_left_out_is_told():
    told = []
    log = metrics_log.MetricsLog(6, lambda *_: None, 8, most_skipped=0, say=told.append)
    for loss, spike in ((1.0, 0.0), (9.0, 1.0)):
        values = {"train/loss": loss, "train/gradient_norm": 2.0, "train/spike": spike}
        log.add({name: jnp.float32(value) for name, value in values.items()}, 0.0)
    log.close_window()
    log.report_closed()
    assert told == [
        "step 8 is left out: its loss is 9, its gradient norm 2, far above recent steps"
    ]


def test_more_skipped_updates_than_the_limit_end_the_run():
    record = Record(nan_at=(3, 6), most_skipped=1)
    with pytest.raises(
        metrics_log.NonFinite, match="2 updates were not finite up to step 6, and NonF"
    ):
        loop.run(0, 0, INTERVALS, record.parts())


def test_a_step_is_saved_before_it_is_evaluated():
    record = Record()
    loop.run(0, 0, INTERVALS, record.parts())
    assert [event[:2] for event in record.events[-3:]] == [
        ("save", 10),
        ("report", 10),
        ("record", 10),
    ]


def test_an_evaluation_that_fails_leaves_the_checkpoint_of_its_step():
    record = Record()
    record.evaluate = lambda state, number: {}[state]
    with pytest.raises(KeyError):
        loop.run(8, 8, INTERVALS, record.parts())
    assert record.of("save") == [(10, 10)]


def test_an_evaluation_that_is_not_finite_is_told_and_ends_the_run():
    record = Record(nan_evaluations=(5,))
    with pytest.raises(metrics_log.NonFinite, match="eval/top_1 is nan at step 5; lower") as raised:
        loop.run(0, 0, INTERVALS, record.parts())
    assert raised.value.step == 5
    assert [step for step, _ in record.of("report", "eval/top_1")] == [5]
    assert record.of("record") == []


def test_an_update_that_is_not_finite_is_the_cause_of_an_evaluation_that_is_not():
    intervals = loop.Intervals(num_steps=10, log_every=10, evaluate_every=(5,), save_every=10)
    record = Record(nan_at=(3,), nan_evaluations=(5,))
    with pytest.raises(metrics_log.NonFinite, match="train/loss is nan at step 3") as raised:
        loop.run(0, 0, intervals, record.parts())
    assert raised.value.step == 3


def test_an_evaluation_that_is_not_finite_counts_as_a_skipped_update():
    record = Record(nan_evaluations=(5, 10), most_skipped=2)
    loop.run(0, 0, INTERVALS, record.parts())
    assert record.of("report", "train/skipped")[-1] == (10, 1)
    record = Record(nan_evaluations=(5, 10), most_skipped=1)
    with pytest.raises(
        metrics_log.NonFinite, match="2 updates were not finite up to step 10, and NonF"
    ):
        loop.run(0, 0, INTERVALS, record.parts())


def test_an_evaluation_may_end_the_run_after_it_was_recorded():
    record = Record()
    intervals = loop.Intervals(num_steps=10, log_every=3, evaluate_every=(4,), save_every=4)
    callbacks = dataclasses.replace(record.parts(), ends=lambda step, metrics: step == 8)
    assert loop.run(0, 0, intervals, callbacks) == 8
    assert [step for step, _ in record.of("save")] == [4, 8]
    assert record.of("record", "eval/top_1") == [(4, 0.4), (8, 0.8)]
    assert record.of("report", "train/loss")[-1] == (8, 7.5)


def test_a_missing_evaluation_may_end_the_run_before_another_step():
    record = Record()
    callbacks = dataclasses.replace(record.parts(), ends=lambda step, metrics: True)
    assert loop.run(5, 5, INTERVALS, callbacks, missing=(0,)) == 5
    assert record.calls == 0
    assert record.of("record") != []


def test_a_state_of_another_step_fails_at_once():
    record = Record()
    with pytest.raises(failures.Failure, match="done 3 steps and the run goes on after step 8"):
        loop.run(3, 8, INTERVALS, record.parts())
    assert record.events == []


@pytest.mark.parametrize(("first_step", "again"), [(5, [(5, 0.5)]), (8, []), (10, [(10, 1.0)])])
def test_an_evaluation_that_is_missing_after_a_resume_is_made_first(first_step, again):
    record = Record()
    missing = INTERVALS.evaluations(first_step)
    loop.run(first_step, first_step, INTERVALS, record.parts(), missing)
    made = record.of("record", "eval/top_1")
    assert made == [*again, *([] if first_step == 10 else [(10, 1.0)])]
    if again:
        assert [event[0] for event in record.events[:2]] == ["report", "record"]
    record = Record()
    loop.run(first_step, first_step, INTERVALS, record.parts())
    assert record.of("record", "eval/top_1") == ([] if first_step == 10 else [(10, 1.0)])


def test_each_evaluation_has_a_cadence_of_its_own_and_is_recorded_alone():
    record, intervals = Record(), dataclasses.replace(INTERVALS, evaluate_every=(5, 4))
    record.evaluate = lambda state, number: {f"eval/{number}": float(state)}
    loop.run(0, 0, intervals, record.parts())
    made = [(step, *metrics) for step, metrics in record.of("record")]
    assert made == [(4, "eval/1"), (5, "eval/0"), (8, "eval/1"), (10, "eval/0"), (10, "eval/1")]
    record.events.clear()
    # What another evaluation of the same step has recorded is not made again.
    loop.run(10, 10, intervals, record.parts(), missing=(1,))
    assert [(step, *metrics) for step, metrics in record.of("record")] == [(10, "eval/1")]


def test_an_evaluation_that_ends_the_run_does_not_hinder_the_others_of_its_step():
    record, intervals = Record(), dataclasses.replace(INTERVALS, evaluate_every=(4, 4))
    record.evaluate = lambda state, number: {f"eval/{number}": float(state)}
    ends = dataclasses.replace(record.parts(), ends=lambda step, metrics: "eval/0" in metrics)
    assert loop.run(0, 0, intervals, ends) == 4
    assert [list(metrics) for _, metrics in record.of("record")] == [["eval/0"], ["eval/1"]]


def test_a_missing_evaluation_that_is_not_finite_ends_the_run():
    record = Record(nan_evaluations=(5,))
    with pytest.raises(metrics_log.NonFinite, match="eval/top_1 is nan at step 5; lower"):
        loop.run(5, 5, INTERVALS, record.parts(), missing=(0,))
    assert record.calls == 0


def test_the_speed_leaves_out_the_time_of_an_evaluation(monkeypatch):
    now, reports = [0.0], []
    monkeypatch.setattr(metrics_log.time, "perf_counter", lambda: now[0])
    log = metrics_log.MetricsLog(0, lambda step, means: reports.append(means), 8, most_skipped=0)

    def step(seconds, waited):
        now[0] += seconds
        log.add({"train/loss": jnp.float32(1)}, waited)

    step(3, waited=3)
    now[0] += 100
    log.restart_clock()
    step(2, waited=1)
    log.close_window()
    log.restart_clock()
    log.close_window()
    assert reports == [
        {
            "train/loss": 1,
            "speed/step_seconds": 2,
            "speed/images_per_second": 4,
            "time/data_wait_fraction": 0.5,
        }
    ]
