"""Processes of one run that nothing holds together but the run itself: no launcher ends them."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

from support import commands, ports

TRAIN = ("-m", "nest_dist", "train")


class Cluster:
    """`nest-dist train` or another program in several processes; `with` leaves none of them behind.

    Attributes:
        processes: by number.
        ended: seconds after the start at which each process had ended, by number.
    """

    def __init__(
        self, count, folder, flags, environment=None, hosts=None, prefix=(), program=TRAIN
    ):
        """Starts all.

        Args:
            count: of processes.
            folder: for their output.
            flags: of each.
            environment: in addition to this process's.
            hosts: namespaces to run in, one a process; None for this host.
            prefix: of the command.
            program: what Python runs.
        """
        address = "127.0.0.1" if hosts is None else hosts.address(0)
        peers = [f"--coordinator={address}:{ports.free()}", f"--num_processes={count}"]
        self.started = time.monotonic()
        self.ended = {}
        self._logs = [folder / f"{index}.log" for index in range(count)]
        self.processes = []
        for index, log in enumerate(self._logs):
            inside = () if hosts is None else hosts.inside(index)
            command = [sys.executable, *program, *flags, *peers]
            self.processes.append(
                subprocess.Popen(
                    [*inside, *prefix, *command, f"--process_id={index}"],
                    cwd=commands.TOP,
                    env={
                        **os.environ,
                        "JAX_PLATFORMS": "cpu",
                        "JAX_NUM_CPU_DEVICES": "1",
                        # What is compiled is small, and compiled often.
                        "XLA_FLAGS": "--xla_backend_optimization_level=0",
                        "PYTHONUNBUFFERED": "1",
                        **(environment or {}),
                    },
                    stdout=log.open("w"),
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self):
        """What all of them have said so far."""
        return "\n".join(log.read_text() for log in self._logs)

    def begun(self):
        """Whether they know where to go on from and are about to compile."""
        return bool(re.search(r" steps of \d+ examples", self.said()))

    def causes(self):
        """What each said of its end."""
        return [
            re.findall(r"^nest-dist: (.*)$", log.read_text(), flags=re.MULTILINE)[-1:]
            for log in self._logs
        ]

    def look(self):
        """Notes who has ended; whether all have."""
        for index, process in enumerate(self.processes):
            if index not in self.ended and process.poll() is not None:
                self.ended[index] = time.monotonic() - self.started
        return len(self.ended) == len(self.processes)

    def wait(self, seconds, but=()):
        """Waits for the end of all; whether it came in time.

        Args:
            seconds: to wait.
            but: those that are not waited for.
        """
        limit = time.monotonic() + seconds
        while not self.look() and set(range(len(self.processes))) - set(but) - set(self.ended):
            if time.monotonic() > limit:
                return False
            time.sleep(0.05)
        return True

    def wait_for_step(self, workdir, step, seconds):
        """Waits for metrics of a step that these processes did; False if all ended before it."""
        limit = time.monotonic() + seconds

        def reached():
            # Before, the lines are those of the attempt before.
            lines = commands.metrics(workdir)[-3:] if self.begun() else []
            return any(line["step"] >= step for line in lines)

        while not reached():
            if self.look():
                return False
            assert time.monotonic() < limit, self.said()
            time.sleep(0.02)
        return True

    def codes(self):
        """Exit codes, negative for signals."""
        return [process.poll() for process in self.processes]


class Namespaces:
    """Hosts of their own on one machine: network namespaces at one bridge, with links to cut."""

    def __init__(self, count):
        self.count = count
        self._prefix = f"nd{os.getpid() % 10000}"

    def __enter__(self):
        bridge = f"{self._prefix}b"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for index in range(self.count):
            name, link = self._name(index), f"{self._prefix}v{index}"
            _ip("netns", "add", name)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", link, "master", bridge)
            _ip("link", "set", link, "up")
            _ip("-n", name, "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            # Gloo tells its peers the address of this host's name.
            folder = pathlib.Path("/etc/netns") / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(f"{self.address(index)} {socket.gethostname()}\n")
        return self

    def __exit__(self, *_):
        for index in range(self.count):
            name = self._name(index)
            _ip("netns", "del", name)
            (pathlib.Path("/etc/netns") / name / "hosts").unlink()
            (pathlib.Path("/etc/netns") / name).rmdir()
        _ip("link", "del", f"{self._prefix}b")

    def address(self, index):
        """Of a host."""
        return f"10.77.0.{index + 1}"

    def inside(self, index):
        """What a command is prefixed with to run there."""
        return ("ip", "netns", "exec", self._name(index))

    def cut(self, index):
        """Takes the link of a host away."""
        _ip("link", "set", f"{self._prefix}v{index}", "down")

    def heal(self, index):
        """Gives it back."""
        _ip("link", "set", f"{self._prefix}v{index}", "up")

    def _name(self, index):
        return f"{self._prefix}n{index}"


def namespaces_allowed():
    """Whether this user may make network namespaces here."""
    try:
        with Namespaces(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
