"""SIGTERM to one process before all have met: every process still hears of it."""

import pathlib
import signal

import pytest
from support import commands, harness

TERM = 1 << (signal.SIGTERM - 1)


def held(process, thread=None):
    """Whether SIGTERM is held back by the main thread of the process, or another."""
    status = pathlib.Path(f"/proc/{process.pid}/task/{thread or process.pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    return bool(int(values["SigBlk"], 16) & TERM)


def served(process):
    """Whether a thread of the process waits for signals, as soon as it looks for the others."""
    threads = [it.name for it in pathlib.Path(f"/proc/{process.pid}/task").iterdir()]
    return held(process) and not all(held(process, it) for it in threads)


MOMENTS = {
    "importing": held,
    "waiting": served,
}


@pytest.mark.parametrize(
    ("moment", "victim"),
    [
        ("importing", 1),
        pytest.param("waiting", 0, marks=pytest.mark.slow),
        pytest.param("importing", 0, marks=pytest.mark.slow),
        pytest.param("waiting", 1, marks=pytest.mark.slow),
    ],
)
def test_a_stop_before_the_meeting_reaches_all(moment, victim, tmp_path):
    workdir = tmp_path / "run"
    train = [*commands.NEST_DIST, "train", *commands.tiny_flags(workdir)]
    with harness.Group.of(2, train, environment=harness.environment()) as group:
        late = group.processes[1 - victim]
        late.send_signal(signal.SIGSTOP)
        process = group.processes[victim]
        harness.wait_in(process, lambda: MOMENTS[moment](process))
        process.terminate()
        late.send_signal(signal.SIGCONT)
        assert group.wait() == [76, 76], group.said()
        assert {commands.cause(process.said()) for process in group.processes} == {
            "asked to stop before the first step: nothing to save"
        }
    assert not (workdir / "checkpoints").exists()


@pytest.mark.slow
def test_a_stop_of_one_whose_peers_stay_away_ends_it(tmp_path):
    # Were it to wait for its peers, it would end with another code.
    flags = [*commands.tiny_flags(tmp_path / "run"), "--wait_seconds=120"]
    train = [*commands.NEST_DIST, "train", *flags]
    with harness.Group.of(2, train, environment=harness.environment()) as group:
        first, missing = group.processes
        missing.kill()
        harness.wait_in(first, lambda: served(first))
        first.terminate()
        assert first.wait() == 76, first.said()
        assert (
            commands.cause(first.said()) == "asked to stop before the first step: nothing to save"
        )
