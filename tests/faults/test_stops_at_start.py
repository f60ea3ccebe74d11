"""SIGTERM to one process before all have met: every process still hears of it."""

import pathlib
import signal
import time

import pytest
from support import cluster, commands

TERM = 1 << (signal.SIGTERM - 1)


def holds(process, mask):
    """Whether SIGTERM is in a mask of the process: SigBlk, held back, or SigCgt, handled."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    return bool(int(values[mask], 16) & TERM)


def wait_until(holds_now, process):
    limit = time.monotonic() + 60
    while not holds_now(process):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.005)


MOMENTS = {
    "importing": lambda process: holds(process, "SigBlk"),
    "waiting": lambda process: holds(process, "SigCgt") and not holds(process, "SigBlk"),
}


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_before_the_meeting_reaches_all(moment, victim, tmp_path):
    workdir = tmp_path / "run"
    with cluster.Cluster(2, tmp_path, commands.tiny_flags(workdir)) as processes:
        late = processes.processes[1 - victim]
        late.send_signal(signal.SIGSTOP)
        wait_until(MOMENTS[moment], processes.processes[victim])
        processes.processes[victim].terminate()
        late.send_signal(signal.SIGCONT)
        assert processes.wait(60), processes.said()
        assert processes.codes() == [76, 76], processes.said()
        assert set(map(tuple, processes.causes())) == {
            ("asked to stop before the first step: nothing to save",)
        }
    assert not (workdir / "checkpoints").exists()


def test_a_stop_of_one_whose_peers_stay_away_ends_it_in_time(tmp_path):
    flags = [*commands.tiny_flags(tmp_path / "run"), "--wait_seconds=50"]
    with cluster.Cluster(2, tmp_path, flags) as processes:
        first, missing = processes.processes
        missing.kill()
        wait_until(MOMENTS["waiting"], first)
        first.terminate()
        assert first.wait(40) == 76
        assert processes.causes()[0] == ["asked to stop during the start: nothing to save"]
