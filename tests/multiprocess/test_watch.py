"""The end of one process ends all, within seconds, with one cause and one exit code."""

import re
import signal
import sys
import time

import psutil
import pytest
from support import commands, harness


class Watched(harness.Group):
    """Processes of `support.watched`; `what` happens to each, by number."""

    def __init__(self, *what, count=3, flags=()):
        super().__init__([])
        self.peers = harness.peers(count) if count else []
        self.add(*self.peers, what=what, flags=flags)

    def add(self, *peers, what=(), flags=()):
        """Starts a process for each of these flags."""
        program = [sys.executable, "-m", "support.watched", *flags]
        own = [*what, *[""] * (len(peers) - len(what))]
        environment = harness.environment(PYTHONPATH=harness.module_path())
        self.processes += [
            harness.Process([*program, *peer, *words.split()], environment=environment)
            for peer, words in zip(peers, own, strict=True)
        ]

    def causes(self, but=()):
        """With which they ended, those with the numbers `but` aside."""
        return {
            commands.cause(process.said())
            for index, process in enumerate(self.processes)
            if index not in but
        }


def ticks(text):
    return [int(tick) for tick in re.findall(r"^tick (\d+)$", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_by_all_others(victim):
    with Watched() as group:
        group.wait_for("tick 5\n")
        group.processes[victim].kill()
        group.wait()
        for index in {0, 1, 2} - {victim}:
            said = group.processes[index].said()
            assert group.processes[index].returncode == 75, group.said()
            # No error of JAX's own, whose client would abort; `nest-dist` hides its warnings.
            ours = re.compile(r"tick|connected|W\d{4} ")
            lines = [line for line in said.splitlines() if not ours.match(line)]
            assert len(lines) == 1, said
            assert lines[0].startswith(f"nest-dist: process {victim} is gone")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_frozen_process_is_named_with_its_last_stack(victim):
    with Watched() as group:
        group.wait_for("tick 15\n")
        group.processes[victim].send_signal(signal.SIGSTOP)
        harness.wait_until(lambda: group.ended(but=[victim]), group.said)
        assert set(group.codes()) == {75, None}, group.said()
        for cause in group.causes(but=[victim]):
            # A step may have lasted too long before the silence did.
            causes = (f"process {victim} has not answered for", f"process {victim} is stuck")
            assert any(text in cause for text in causes), cause
            assert victim == 0 or "watched.py" in cause


@pytest.mark.slow
def test_a_process_that_hangs_is_named_with_its_stack():
    with Watched("", "stuck@9") as group:
        assert group.wait() == [75, 75, 75], group.said()
        for cause in group.causes():
            assert "process 1 is stuck: data wait for" in cause
        # The whole stack, from the process itself.
        said = group.processes[1].said()
        assert 'watched.py", line' in said
        assert "in ticks" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("fail@7", 1, "ZeroDivisionError: no divisor"),
        ("input@7", 2, "the disk is full; make room."),
    ],
)
def test_a_failure_of_one_is_named_by_all(what, code, text):
    with Watched("", "", what) as group:
        assert group.wait() == [code] * 3, group.said()
        assert group.causes(but=[2]) == {f"process 2: {text}"}
        said = group.processes[2].said()
        assert text in said
        assert ("Traceback" in said) == (code == 1)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stop_asked_of_one_stops_all_after_the_same_tick(victim):
    with Watched() as group:
        group.wait_for("tick 5\n")
        group.processes[victim].terminate()
        assert group.wait() == [76] * 3, group.said()
        last = {ticks(process.said())[-1] for process in group.processes}
        assert len(last) == 1
        assert group.causes(but=[1, 2]) == {f"stopped after tick {last.pop()}"}


@pytest.mark.slow
def test_a_stop_waits_for_a_process_that_is_behind():
    with Watched("", "long@6", flags=["--stuck_seconds=60"]) as group:
        group.wait_for("tick 5\n")
        group.processes[0].terminate()
        assert group.wait() == [76] * 3, group.said()
        assert len({ticks(process.said())[-1] for process in group.processes}) == 1


def test_a_stop_before_the_first_step_ends_all_at_once():
    with Watched("", "unbegun", "") as group:
        group.wait_for("connected")
        group.processes[2].terminate()
        assert group.wait() == [76] * 3, group.said()
        assert group.causes() == {"asked to stop before the first step: nothing to save"}


@pytest.mark.slow
def test_a_run_that_ends_well_ends_all_well():
    with Watched() as group:
        assert group.wait() == [0, 0, 0], group.said()
        assert [ticks(process.said())[-1] for process in group.processes] == [60] * 3
        assert group.causes() == {""}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_lost_after_its_goodbye_leaves_one_line(victim):
    with Watched(*["gone" if index == victim else "" for index in range(2)], count=2) as group:
        codes = group.wait(60)
        survivor = group.processes[1 - victim]
        assert codes[victim] == -signal.SIGKILL
        # Process 1 may go at any time after it. Process 0 alone knows that all said it: the other
        # one may have heard that before.
        assert codes[1 - victim] in ({0, 75} if victim == 0 else {0}), group.said()
        assert not any("@ 0x" in line for line in survivor.said().splitlines()), survivor.said()


@pytest.mark.slow
def test_all_may_stand_still_for_long_and_go_on():
    with Watched(count=2) as group:
        group.wait_for("tick 5\n")
        for process in group.processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(9)  # longer than a process may be silent here
        for process in group.processes:
            process.send_signal(signal.SIGCONT)
        assert group.wait() == [0, 0], group.said()


def test_a_stop_of_all_that_wait_for_data_comes_before_that_data():
    with Watched("stalled@9", "stalled@9", count=2, flags=["--stuck_seconds=60"]) as group:
        group.wait_for("tick 8\n")
        group.processes[1].terminate()
        assert group.wait() == [76, 76], group.said()
        assert group.causes() == {"stopped after tick 8"}


@pytest.mark.slow
def test_a_stop_waits_for_data_of_a_begun_step_no_longer_than_its_limit():
    with Watched("", "stalled@9", count=2, flags=["--stuck_seconds=120"]) as group:
        group.wait_for("tick 8\n")
        group.processes[0].terminate()
        assert group.wait(60) == [76, 76], group.said()
        assert "asked to stop, and no data comes" in group.said()


def test_different_numbers_of_processes_are_refused_at_once():
    first, second = harness.peers(2)
    third = [flag.replace("num_processes=2", "num_processes=3") for flag in second]
    with Watched(count=0) as group:
        group.add(first, third)
        assert group.wait() == [2, 2], group.said()
        text = (
            "--num_processes is 3 on process 1, 2 on process 0; start all processes with the same"
        )
        assert all(text in cause for cause in group.causes())


def test_a_second_start_at_the_same_address_is_refused_and_the_run_goes_on():
    with Watched(count=2) as group:
        group.wait_for("tick 5\n")
        with Watched(count=0) as second:
            second.add(*group.peers)
            assert second.wait() == [2, 2], second.said()
            assert "process 0 needs ports" in second.processes[0].said()
            assert "process 1 of the run at this address is there already" in second.said()
        assert group.wait() == [0, 0], group.said()


@pytest.mark.slow
def test_a_process_that_is_lost_before_all_have_met_ends_the_others():
    with Watched(count=3) as group:
        first, second, third = group.processes
        third.send_signal(signal.SIGSTOP)
        harness.wait_until(lambda: psutil.Process(second.pid).net_connections(), group.said)
        time.sleep(1)
        second.kill()
        assert first.wait(60) == 75, first.said()
        third.send_signal(signal.SIGCONT)
        third.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_processes_that_do_not_come_are_named(present):
    with Watched(count=0) as group:
        group.add(harness.peers(2)[present], flags=["--wait_seconds=3"])
        assert group.wait() == [75], group.said()
        cause = (
            "within 3 s (--wait_seconds)",
            "did not reach process 0",
        )
        assert cause[present] in group.said()
