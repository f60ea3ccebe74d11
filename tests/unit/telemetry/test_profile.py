"""The steps of traces, on processes that are driven by plain functions."""

import signal

import jax
import pytest

from nest_dist.cluster import processes as cluster_processes
from nest_dist.cluster import stop_signals
from nest_dist.telemetry import profile

LOOK_EVERY = 10


class Processes:
    """Profilers of several processes, and their published texts."""

    def __init__(self, monkeypatch, workdir):
        self.traced, self.said, self.primary = [], [], True
        self._published = {}
        self._workdir = workdir
        monkeypatch.setattr(cluster_processes, "is_primary", lambda: self.primary)
        monkeypatch.setattr(cluster_processes, "publish", self._published.setdefault)
        monkeypatch.setattr(cluster_processes, "published", self._published.get)
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: self.traced.append([]))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)

    def profiler(self, first_step=None, num_steps=3):
        return profile.Profiler(first_step, num_steps, self._workdir, LOOK_EVERY, self.said.append)


@pytest.fixture
def processes(monkeypatch, tmp_path):
    return Processes(monkeypatch, tmp_path)


def spans(profiler, processes, steps):
    """First and last step of each trace over these steps."""
    with profiler:
        for step in steps:
            profiler.before_step(step, lambda: None)
    return [tuple(map(int, line.split(":")[0].split()[2::2])) for line in processes.said]


def test_planned_steps_are_traced_once(processes):
    assert spans(processes.profiler(first_step=5), processes, range(1, 40)) == [(5, 7)]


def test_a_trace_ends_with_the_run(processes):
    assert spans(processes.profiler(first_step=38), processes, range(1, 40)) == [(38, 39)]


def test_nothing_is_traced_without_a_request(processes):
    assert spans(processes.profiler(), processes, range(1, 40)) == []


def test_a_failing_run_does_not_wait_for_its_trace(processes):
    def steps():
        yield 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spans(processes.profiler(first_step=2), processes, steps())
    assert processes.traced == [[]]
    assert processes.said == []


@pytest.mark.parametrize("requested_at", [3, 10, 14])
def test_a_request_is_followed_by_all_processes_at_the_same_step(processes, tmp_path, requested_at):
    primary, other = processes.profiler(), processes.profiler()
    with primary, other:
        for step in range(1, 100):
            if step == requested_at:
                (tmp_path / "profile").touch()
            processes.primary = True
            primary.before_step(step, lambda: None)
            processes.primary = False
            # Another process may be some steps behind.
            if step > 5:
                other.before_step(step - 5, lambda: None)
    first, second = processes.said
    assert first == second
    assert not (tmp_path / "profile").exists()


def test_each_signal_requests_a_trace(processes):
    profiler = processes.profiler(num_steps=1)

    def steps():
        for step in range(1, 100):
            if step in (5, 60):
                signal.raise_signal(signal.SIGUSR1)
            yield step

    stop_signals.hold_back()  # as `nest-dist` does first of all
    try:
        assert len(spans(profiler, processes, steps())) == 2
    finally:
        stop_signals.release()


def test_a_signal_before_the_first_step_requests_a_trace_and_kills_nothing(processes):
    stop_signals.hold_back()
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert len(spans(processes.profiler(num_steps=1), processes, range(1, 40))) == 1
    finally:
        stop_signals.release()
