"""Hosts with network stacks of their own on this machine: Linux network namespaces on a bridge."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess

CONFIGURED = pathlib.Path("/etc/netns")


def allowed():
    """Whether this machine lets us make them."""
    name = f"probe{os.getpid()}"
    made = os.geteuid() == 0 and shutil.which("ip") and _ip("netns", "add", name, check=False)
    if made and made.returncode == 0:
        _ip("netns", "delete", name)
        return True
    return False


@contextlib.contextmanager
def hosts(count):
    """Their names and addresses, and the address at which they reach this machine."""
    stem, net = f"n{os.getpid()}", "10.78.0."
    names = [f"{stem}-{index}" for index in range(count)]
    addresses = [f"{net}{index + 2}" for index in range(count)]
    try:
        _ip("link", "add", f"{stem}b", "type", "bridge")
        _ip("address", "add", f"{net}1/24", "dev", f"{stem}b")
        _ip("link", "set", f"{stem}b", "up")
        for name, address in zip(names, addresses, strict=True):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}v", "master", f"{stem}b", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
            # Gloo tells its peers the address that the name of its host stands for.
            (CONFIGURED / name).mkdir(parents=True)
            (CONFIGURED / name / "hosts").write_text(
                f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n"
            )
        yield list(zip(names, addresses, strict=True)), f"{net}1"
    finally:
        for name in names:
            _ip("netns", "delete", name, check=False)
            shutil.rmtree(CONFIGURED / name, ignore_errors=True)
        _ip("link", "delete", f"{stem}b", check=False)


def _ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)
