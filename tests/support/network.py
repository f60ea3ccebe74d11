"""Hosts with network stacks of their own on this machine: Linux network namespaces on a bridge."""

import os
import pathlib
import shutil
import socket
import subprocess

CONFIGURED = pathlib.Path("/etc/netns")


def allowed():
    """Whether this user may make such hosts here."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    try:
        with Hosts(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Hosts:
    """So many hosts, as long as the `with` block lasts.

    Attributes:
        names: of the network namespaces.
        addresses: of the hosts.
        gateway: the address at which the hosts reach this machine.
    """

    def __init__(self, count):
        self._stem, net = f"n{os.getpid()}", f"10.78.{os.getpid() % 256}"
        self.names = [f"{self._stem}-{index}" for index in range(count)]
        self.addresses = [f"{net}.{index + 2}" for index in range(count)]
        self.gateway = f"{net}.1"

    def __enter__(self):
        bridge = f"{self._stem}b"
        try:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("address", "add", f"{self.gateway}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for name, address in zip(self.names, self.addresses, strict=True):
                self._add(name, address, bridge)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            _ip("netns", "delete", name, check=False)
            shutil.rmtree(CONFIGURED / name, ignore_errors=True)
        _ip("link", "delete", f"{self._stem}b", check=False)

    def inside(self, index):
        """The prefix of a command that runs on a host."""
        return ("ip", "netns", "exec", self.names[index])

    def cut(self, index):
        """Takes the link of a host away."""
        _ip("link", "set", f"{self.names[index]}v", "down")

    def heal(self, index):
        """Gives it back."""
        _ip("link", "set", f"{self.names[index]}v", "up")

    def _add(self, name, address, bridge):
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", f"{name}v", "master", bridge, "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", name, "link", "set", device, "up")
        # Gloo tells its peers the address of this host's name.
        (CONFIGURED / name).mkdir(parents=True)
        (CONFIGURED / name / "hosts").write_text(
            f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n"
        )


def _ip(*words, check=True):
    subprocess.run(["ip", *words], check=check, capture_output=True)
