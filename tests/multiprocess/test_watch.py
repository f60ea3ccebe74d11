"""What ends one process ends all, within seconds, with one cause and one exit code."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support import commands, ports


class Group:
    """Processes of `support.watched`; `with` waits for nothing and leaves none behind."""

    def __init__(self, folder, *what, count=3, flags=()):
        port = ports.free()
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(commands.TOP / "tests"),
        }
        self.logs = [folder / f"{index}.log" for index in range(count)]
        self.processes = []
        for index, log in enumerate(self.logs):
            own = what[index] if index < len(what) else ""
            peers = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "support.watched", *peers, *flags),
                        *(f"--process_id={index}", *own.split()),
                    ],
                    env=environment,
                    stdout=log.open("w"),
                    stderr=subprocess.STDOUT,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, index):
        return self.logs[index].read_text()

    def wait_for(self, text, timeout=120):
        limit = time.monotonic() + timeout
        while any(text not in self.said(index) for index in range(len(self.logs))):
            assert time.monotonic() < limit, "\n".join(map(self.said, range(len(self.logs))))
            time.sleep(0.05)

    def codes(self, timeout=120):
        """Exit codes, and seconds until all had ended."""
        started = time.monotonic()
        found = [process.wait(timeout) for process in self.processes]
        return found, time.monotonic() - started


def cause(text):
    """The last line that the program said, without what follows it."""
    return next(line for line in text.splitlines() if line.startswith("nest-dist: "))


def ticks(text):
    return [int(tick) for tick in re.findall(r"^tick (\d+)$", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_by_all_others(victim, tmp_path):
    with Group(tmp_path) as group:
        group.wait_for("tick 5\n")
        group.processes[victim].kill()
        codes, seconds = group.codes()
        others = [index for index in range(3) if index != victim]
        assert codes[victim] == -9
        assert seconds < 30
        if victim == 0 and -6 in codes:
            return  # JAX was faster to abort than the watch: it, too, ends all at once
        assert [codes[index] for index in others] == [75, 75]
        causes = {cause(group.said(index)) for index in others}
        assert len(causes) == 1, causes
        assert f"process {victim} is gone" in causes.pop()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_process_is_named_with_the_place_where_it_was(victim, tmp_path):
    with Group(tmp_path) as group:
        group.wait_for("tick 15\n")
        group.processes[victim].send_signal(signal.SIGSTOP)
        others = [index for index in range(3) if index != victim]
        for index in others:
            assert group.processes[index].wait(60) == 75
            said = cause(group.said(index))
            # A step may have lasted too long before the silence did.
            named = (f"process {victim} has not answered for", f"process {victim} is stuck")
            assert any(each in said for each in named), said
            assert victim == 0 or "watched.py" in said


def test_a_process_that_hangs_is_named_with_its_stack(tmp_path):
    with Group(tmp_path, "", "stuck@9") as group:
        codes, _ = group.codes()
        assert codes == [75, 75, 75]
        for index in range(3):
            assert "process 1 is stuck: data wait for" in cause(group.said(index))
        # The whole stack, from the process itself.
        assert 'watched.py", line' in group.said(1)
        assert "in ticks" in group.said(1)


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("fail@7", 1, "ZeroDivisionError: no divisor"),
        ("input@7", 2, "the disk is full; make room."),
    ],
)
def test_a_failure_of_one_is_told_by_all(what, code, text, tmp_path):
    with Group(tmp_path, "", "", what) as group:
        codes, _ = group.codes()
        assert codes == [code] * 3
        for index in range(2):
            assert cause(group.said(index)) == f"nest-dist: process 2: {text}"
        assert text in group.said(2)
        assert ("Traceback" in group.said(2)) == (code == 1)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stop_asked_of_one_stops_all_after_the_same_tick(victim, tmp_path):
    with Group(tmp_path) as group:
        group.wait_for("tick 5\n")
        group.processes[victim].terminate()
        codes, _ = group.codes()
        assert codes == [76] * 3
        last = {ticks(group.said(index))[-1] for index in range(3)}
        assert len(last) == 1
        assert f"nest-dist: stopped after tick {last.pop()}" in group.said(0)


def test_a_stop_waits_for_a_process_that_is_behind(tmp_path):
    with Group(tmp_path, "", "long@6", flags=["--stuck_seconds=60"]) as group:
        group.wait_for("tick 5\n")
        group.processes[0].terminate()
        codes, _ = group.codes()
        assert codes == [76] * 3
        assert len({ticks(group.said(index))[-1] for index in range(3)}) == 1


def test_a_stop_before_the_first_step_ends_all_at_once(tmp_path):
    with Group(tmp_path, "", "unbegun", "") as group:
        group.wait_for("connected")
        group.processes[2].terminate()
        codes, seconds = group.codes()
        assert codes == [76] * 3
        assert seconds < 30
        for index in range(3):
            assert "asked to stop before the first step: nothing to save" in group.said(index)


def test_a_run_that_ends_well_ends_all_well(tmp_path):
    with Group(tmp_path) as group:
        codes, _ = group.codes()
        assert codes == [0, 0, 0]
        assert [ticks(group.said(index))[-1] for index in range(3)] == [60] * 3
        assert not any("nest-dist:" in group.said(index) for index in range(3))
