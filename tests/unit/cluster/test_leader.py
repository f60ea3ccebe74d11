"""What the leader decides, heard over plain sockets."""

import contextlib
import json
import math
import socket

import pytest
from support import ports

from nest_dist.cluster import leader, protocol


class Member:
    """A process of a run as the leader knows it: what it says and hears."""

    def __init__(self, connection, index, count=2):
        self._connection = connection
        self._lines = connection.makefile("rb")
        connection.settimeout(20)
        self.say("hello", index=index, count=count)

    def say(self, kind, **fields):
        self._connection.sendall(protocol.encode(kind, **fields))

    def pulse(self, tick, held=False, phase="step"):
        self.say("pulse", tick=tick, held=held, phase=phase, seconds=1.0, stack="loop.py:1 run")

    def hear(self, kind):
        """The next message of this kind; nothing but pulses comes before it."""
        for line in self._lines:
            message = json.loads(line)
            if message["kind"] == kind:
                return message
            assert message["kind"] == "pulse", message
        raise AssertionError(f"no {kind}")

    def leave(self):
        self._connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def meet():
    """Starts a leader and a second process; gives the leader, its address, and both members."""
    with contextlib.ExitStack() as opened:

        def start(stuck_seconds=math.inf):
            ours, theirs = socket.socketpair()
            port = ports.free()
            leading = leader.Leader(2, port, 20, theirs, stuck_seconds)
            other = protocol.connect("localhost", port, 20)
            members = [Member(ours, 0), Member(other, 1)]
            for connection in (ours, other):
                opened.callback(connection.close)
            for member in members:
                member.hear("met")
            return leading, port, *members

        yield start


def test_a_stop_comes_one_tick_after_the_furthest_process(meet):
    leading, _, first, second = meet()
    first.pulse(3)
    second.pulse(7)
    second.say("stop")
    for member, tick in ((first, 3), (second, 7)):
        member.hear("hold")
        member.pulse(tick, held=True)
    for member in (first, second):
        assert member.hear("stop_at")["tick"] == 8
        member.say("bye")
    for member in (first, second):
        member.hear("done")
    assert not leading.over.is_set()
    second.leave()
    assert leading.over.wait(5)


def test_a_stop_before_the_first_step_of_one_process_ends_all(meet):
    _, _, first, second = meet()
    first.say("stop")
    first.hear("hold")
    second.hear("hold")
    second.pulse(-1, held=True)
    for member in (first, second):
        end = member.hear("end")
        assert (end["code"], end["cause"]) == (76, leader.NOTHING_TO_SAVE)


def test_a_process_that_is_gone_ends_all_with_its_last_status(meet):
    leading, _, first, second = meet()
    second.pulse(3)
    second.leave()
    end = first.hear("end")
    assert (end["code"], end["failed_process"]) == (75, 1)
    assert end["cause"] == "process 1 is gone (step for 1 s, at loop.py:1 run)"
    assert leading.over.wait(5)


def test_training_that_stands_still_is_the_fault_of_the_process_that_is_behind(meet):
    _, _, first, second = meet(stuck_seconds=2)
    first.pulse(3)
    second.pulse(3, phase="data_wait")
    assert "process 1 is stuck: data wait for 1 s" in first.hear("end")["cause"]


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"kind": "bye"}\n', b""])
def test_a_stranger_at_the_port_changes_nothing(words, meet):
    _, port, first, _ = meet()
    stranger = protocol.connect("localhost", port, 20)
    stranger.sendall(words)
    stranger.shutdown(socket.SHUT_WR)
    assert stranger.recv(1000) == b""
    stranger.close()
    first.say("stop")
    first.hear("hold")


def test_a_second_process_of_the_same_number_is_refused_alone(meet):
    _, port, first, _ = meet()
    connection = protocol.connect("localhost", port, 20)
    assert (
        "process 1 of the run at this address is there"
        in Member(connection, 1).hear("end")["cause"]
    )
    connection.close()
    first.say("stop")
    first.hear("hold")
