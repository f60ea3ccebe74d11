import json
import time

import pytest

from nest_dist.telemetry import goodput


class Clock:
    """A clock that moves when told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(goodput, "_seconds_since_process_start", lambda: 5.0)

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def spent(ledger):
    return {cause: seconds for cause, seconds in ledger.seconds.items() if seconds}


def test_every_second_belongs_to_the_innermost_cause(clock):
    ledger = goodput.Ledger()
    clock.spend(2)
    ledger.resume(None, 0)
    with ledger.during("step"):
        clock.spend(3)
        with ledger.during("data_wait"):
            clock.spend(4)
        clock.spend(5)
    assert spent(ledger) == {"start": 7, "step": 8, "data_wait": 4}
    assert ledger.metrics()["goodput/fraction"] == 8 / 19
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
    return ledger


def test_what_a_restart_does_again_is_lost(clock, tmp_path):
    path = tmp_path / "goodput.json"
    attempt(clock, path, 0)
    second = attempt(clock, path, 5)
    # Steps 6 to 10 of the first attempt are lost.
    assert spent(second) == {"start": 10, "step": 15, "evaluation": 4, "save": 6, "lost": 5}
    # No checkpoint of the second attempt came to its end; nor did that of the first.
    third = goodput.Ledger()
    third.resume(path, 0)
    assert spent(third) == {"start": 15, "save": 6, "lost": 24}


def test_a_stop_that_saved_loses_nothing(clock, tmp_path):
    path = tmp_path / "goodput.json"
    first = attempt(clock, path, 0)
    first.saved(10)
    second = goodput.Ledger()
    second.resume(path, 10)
    assert "lost" not in spent(second)
    assert second.seconds["step"] == 10


def test_the_books_on_disk_are_never_more_than_a_second_old(clock, tmp_path):
    path = tmp_path / "goodput.json"
    attempt(clock, path, 0)
    books = json.loads(path.read_text())
    assert sum(books["seconds"].values()) == 5 + 10 + 2 + 3
    assert books["saved"].keys() == {"5"}


def test_a_process_counts_from_its_own_beginning():
    # This one has at least imported JAX.
    assert 0.5 < goodput._seconds_since_process_start() < 24 * 3600
