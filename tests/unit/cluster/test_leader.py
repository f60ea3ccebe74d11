"""What the leader decides, heard over plain sockets."""

import asyncio
import contextlib
import errno
import json
import math
import socket
import time

import pytest
from support import ports

from nest_dist.cluster import addresses, leader, protocol

SECRET = b"that of the run"


class Member:
    """A process of a run as the leader knows it: what it says and hears."""

    def __init__(self, connection, index, count=2):
        self._connection = connection
        self._lines = protocol.greet(connection, SECRET, index, count)
        connection.settimeout(20)

    def say(self, kind, **fields):
        self._connection.sendall(protocol.encode(kind, **fields))

    def pulse(self, tick, held=False, phase="step", waited=0.0):
        stack = "loop.py:1 run"
        self.say(
            "pulse", tick=tick, held=held, phase=phase, seconds=1.0, waited=waited, stack=stack
        )

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
            server = addresses.listen("localhost", port)
            leading = leader.Leader(2, server, 20, theirs, stuck_seconds, SECRET)
            other = addresses.connect("localhost", port, 20)
            members = [Member(ours, 0), Member(other, 1)]
            for connection in (ours, other):
                opened.callback(connection.close)
            for member in members:
                member.hear("met")
            return leading, port, *members

        yield start


def test_a_leader_that_cannot_start_keeps_nobody_waiting(monkeypatch):
    def full():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "new_event_loop", full)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="Too many open files"):
        leader.Leader(1, None, 20, theirs, math.inf, SECRET)


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


@pytest.mark.medium
def test_training_that_stands_still_is_the_fault_of_the_process_that_is_behind(meet):
    _, _, first, second = meet(stuck_seconds=2)
    first.pulse(3)
    second.pulse(3, phase="data_wait")
    assert "process 1 is stuck: data wait for 1 s" in first.hear("end")["cause"]


@pytest.mark.medium
def test_a_stop_that_was_agreed_on_may_wait_for_data_longer_than_training_may(meet):
    _, _, *members = meet(stuck_seconds=1)
    members[0].say("stop")
    for tick, member in enumerate(members):
        member.hear("hold")
        member.pulse(tick, held=True, phase="data_wait")
    for member in members:
        member.hear("stop_at")
    time.sleep(3)
    for member in members:
        member.say("bye")
    for member in members:
        member.hear("done")


PULSE = {"kind": "pulse", "tick": 1, "held": False, "phase": "", "seconds": 1.0, "waited": 0.0}
PULSE["stack"] = ""
HELLO = {"kind": "hello", "index": 1, "count": 2, "nonce": "", "proof": ""}
STRANGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "a list": b"[]\n",
    "brackets": b"[" * 15000 + b"\n",
    "no end": b"[" * 200_000,
    "no hello": b'{"kind": "bye"}\n',
    "an unknown kind": b'{"kind": ["bye"]}\n',
    "a failure with code 0": b'{"kind": "failed", "code": 0, "cause": "all is well"}\n',
    "no proof": json.dumps(HELLO).encode() + b"\n",
    "a proof that is no ASCII": json.dumps({**HELLO, "proof": "\ud800ü"}).encode() + b"\n",
    "a number without end": b'{"kind": "hello", "index": ' + b"9" * 9000 + b"}\n",
    "silence": b"",
}


@pytest.mark.parametrize("words", STRANGE.values(), ids=STRANGE)
def test_a_stranger_at_the_port_changes_nothing(words, meet):
    _, port, first, _ = meet()
    with addresses.connect("localhost", port, 20) as stranger, contextlib.suppress(OSError):
        stranger.sendall(words)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(1000):
            pass
    first.say("stop")
    first.hear("hold")


def test_who_has_another_secret_is_refused_and_refuses(meet):
    _, port, first, _ = meet()
    with addresses.connect("localhost", port, 20) as stranger, pytest.raises(protocol.Refused):
        protocol.greet(stranger, b"another secret", 1, 2)
    first.say("stop")
    first.hear("hold")


def test_a_process_obeys_no_leader_without_the_secret():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(protocol.encode("challenge", nonce="7"))
        theirs.sendall(protocol.encode("welcome", proof="0" * 64))
        theirs.sendall(protocol.encode("end", code=0, cause="all is well", failed_process=0))
        with pytest.raises(protocol.Refused):
            protocol.greet(ours, SECRET, 1, 2)


def test_a_hello_that_was_overheard_is_of_no_use(meet):
    _, port, _, _ = meet()
    overheard = []

    class Recorded(socket.socket):
        def sendall(self, words):
            overheard.append(words)
            super().sendall(words)

    connection = addresses.connect("localhost", port, 20)
    with Recorded(fileno=connection.detach()) as honest:
        honest.settimeout(20)
        protocol.greet(honest, SECRET, 1, 2)
    with addresses.connect("localhost", port, 20) as stranger:
        lines = stranger.makefile("rb")
        lines.readline()
        stranger.sendall(*overheard)
        assert json.loads(lines.readline()) == {"kind": "refused"}


def test_strangers_that_hold_their_connections_keep_nobody_out(meet, monkeypatch):
    monkeypatch.setattr(leader, "STRANGERS", 3)
    _, port, _, _ = meet()
    with contextlib.ExitStack() as opened:
        for _ in range(20):
            opened.enter_context(addresses.connect("localhost", port, 20))
        last = opened.enter_context(addresses.connect("localhost", port, 20))
        assert "is there already" in Member(last, 1).hear("end")["cause"]


def test_who_says_nothing_is_dropped(meet, monkeypatch):
    _, port, _, _ = meet()
    monkeypatch.setattr(protocol, "GREETING_SECONDS", 0.2)
    with addresses.connect("localhost", port, 20) as stranger:
        lines = stranger.makefile("rb")
        assert json.loads(lines.readline())["kind"] == "challenge"
        assert lines.read() == b""


@pytest.mark.parametrize(
    "words",
    [
        {"kind": "failed", "code": 0, "cause": "all is well"},
        {"kind": "failed", "code": 77, "cause": "no code of ours"},
        {"kind": "pulse", "tick": 1},
        {**PULSE, "tick": 1e9},
        {**PULSE, "tick": 1 << 70},
        {**PULSE, "seconds": "1"},
    ],
)
def test_a_process_that_says_what_it_may_not_is_gone_for_the_others(words, meet):
    _, _, first, second = meet()
    second._connection.sendall(json.dumps(words).encode() + b"\n")
    end = first.hear("end")
    assert (end["code"], end["cause"]) == (75, "process 1 is gone (it sent no status)")


def test_a_cause_is_one_line_that_no_terminal_obeys(meet):
    _, _, first, second = meet()
    second.say("failed", code=2, cause="process 1: \x1b[2J\nlong" + "g" * 5000)
    cause = first.hear("end")["cause"]
    assert cause.startswith("process 1:  [2J longg")
    assert len(cause) == 1000


def test_a_second_process_of_the_same_number_is_refused_alone(meet):
    _, port, first, _ = meet()
    connection = addresses.connect("localhost", port, 20)
    assert (
        "process 1 of the run at this address is there"
        in Member(connection, 1).hear("end")["cause"]
    )
    connection.close()
    first.say("stop")
    first.hear("hold")
