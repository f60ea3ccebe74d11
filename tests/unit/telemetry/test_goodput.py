import json
import time

import pytest

from nest_dist.telemetry import goodput


class Clock:
    """A clock that only `spend` moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def started(ledger):
    """Seconds before the first step; they begin with the process."""
    metrics = ledger.metrics()
    return metrics["goodput/import_seconds"] + metrics["goodput/start_seconds"]


def spent(ledger):
    """Seconds by cause, the start aside."""
    causes = ledger.seconds.items()
    return {it: seconds for it, seconds in causes if seconds and it not in ("import", "start")}


def test_every_second_belongs_to_the_innermost_cause(clock):
    ledger = goodput.Ledger()
    start = started(ledger)
    clock.spend(2)
    ledger.resume(None, 0)
    with ledger.during("step"):
        clock.spend(3)
        with ledger.during("data_wait"):
            clock.spend(4)
        clock.spend(5)
    assert started(ledger) == start + 2
    assert spent(ledger) == {"step": 8, "data_wait": 4}
    assert ledger.metrics()["goodput/fraction"] == pytest.approx(8 / (start + 14))
    assert ledger.metrics()["goodput/data_wait_seconds"] == 4


def attempt(clock, path, first_step):
    """Ten steps of a second each and an evaluation, saved after five steps; then it is killed."""
    ledger = goodput.Ledger()
    ledger.resume(path, first_step)
    with ledger.during("step"):
        for step in range(first_step + 1, first_step + 11):
            clock.spend(1)
            ledger.write(at_once=False)
            if step == first_step + 5:
                with ledger.during("evaluation"):
                    clock.spend(2)
                ledger.saved(step)
                with ledger.during("save"):
                    clock.spend(3)
    ledger._writer.submit(int).result()  # killed, but what it has begun to write is written
    return ledger


def test_the_time_that_a_restart_repeats_is_lost(clock, tmp_path):
    path = tmp_path / "goodput.json"
    attempt(clock, path, 0)
    second = attempt(clock, path, 5)
    # Steps 6 to 10 of the first attempt are lost.
    assert spent(second) == {"step": 15, "evaluation": 4, "save": 6, "lost": 5}
    # No checkpoint of the second attempt was completed, nor that of the first.
    third = goodput.Ledger()
    third.resume(path, 0)
    assert spent(third) == {"save": 6, "lost": 24}


def test_the_first_step_after_a_restart_tells_the_seconds_by_cause(clock, tmp_path, monkeypatch):
    path = tmp_path / "goodput.json"
    wall = 1e9
    monkeypatch.setattr(time, "time", lambda: wall + clock.now)
    monkeypatch.setattr(goodput, "_seconds_since_process_start", lambda: 2.0)
    first = attempt(clock, path, 0)
    clock.spend(7)
    second = goodput.Ledger()
    with second.during("meet"):
        clock.spend(1)
    clock.spend(0.5)
    second.resume(path, 5)
    with second.during("compile"):
        clock.spend(3)
    with second.during("step"), second.during("data_wait"):
        clock.spend(0.25)
    # The process began 2 s before its ledger, and so 5 s after the attempt before had ended.
    assert second.first_step() == (
        "first step 11.8 s after the end of the attempt before: down 5.0, import 2.0, meet 1.0, "
        "start 0.5, compile 3.0, data wait 0.2"
    )
    assert first.first_step().startswith("first step ")
    wall = 0  # the clock was set back
    third = goodput.Ledger()
    third.resume(path, 5)
    assert third.first_step() == "first step 2.0 s after the start: import 2.0"


def test_a_stop_that_saved_loses_nothing(clock, tmp_path):
    path = tmp_path / "goodput.json"
    first = attempt(clock, path, 0)
    first.saved(10)
    first.close()
    second = goodput.Ledger()
    second.resume(path, 10)
    assert "lost" not in spent(second)
    assert second.seconds["step"] == 10


def test_the_record_on_disk_is_never_more_than_a_second_old(clock, tmp_path):
    path = tmp_path / "goodput.json"
    attempt(clock, path, 0)
    record = json.loads(path.read_text())
    start = record["seconds"]["import"] + record["seconds"]["start"]
    assert sum(record["seconds"].values()) - start == 10 + 2 + 3
    assert record["saved"].keys() == {"5"}


def test_a_process_counts_from_its_own_beginning():
    # This one has at least imported JAX.
    assert 0.5 < started(goodput.Ledger()) < 24 * 3600


def test_the_starts_of_all_attempts_are_counted(tmp_path):
    path = tmp_path / "goodput.json"
    first, second = goodput.Ledger(), goodput.Ledger()
    for ledger in (first, second):
        ledger.resume(path, 0)
        ledger.close()
    # This process is the same age at both, but for moments.
    assert started(second) == pytest.approx(2 * started(first), rel=0.4)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        bytes(300),
        b"\xff\xfe",
        b"[]",
        b"7",
        b'{"seconds": {}}',
        b'{"seconds": {"step": "long"}, "saved": {}}',
        b'{"seconds": {"step": NaN}, "saved": {}}',
        b'{"seconds": {}, "saved": {"5": {}}}',
    ],
)
def test_a_damaged_record_is_laid_aside_and_begun_anew(damaged, tmp_path, capsys):
    path = tmp_path / "goodput.json"
    path.write_bytes(damaged)
    ledger = goodput.Ledger()
    ledger.resume(path, 0)
    ledger.close()
    assert json.loads(path.read_text())["saved"] == {}
    assert (tmp_path / "goodput.json.damaged").read_bytes() == damaged
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{path} is damaged (" in line
    assert f"moved to {path}.damaged and begun anew" in line


def test_a_cause_of_another_version_is_left_out(tmp_path):
    path = tmp_path / "goodput.json"
    path.write_text('{"seconds": {"sleep": 5, "step": 7}, "saved": {}}')
    ledger = goodput.Ledger()
    ledger.resume(path, 3)
    ledger.close()
    assert spent(ledger)["lost"] == 7


def test_a_record_that_cannot_be_written_costs_one_line(clock, tmp_path, capsys):
    path = tmp_path / "gone" / "goodput.json"
    assert spent(attempt(clock, path, 0))["step"] == 10
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{path} cannot be written (No such file or directory); the run goes on w" in line
