"""Ports for servers that a test starts."""

import itertools
import os
import random
import socket

# Below those that the system gives to clients: between this choice and the server's start, a
# connection of another test might take one of them. Each worker of pytest has its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_COUNT = 4000
_FIRST = 10000 + _COUNT * (_WORKER % 5)
_places = itertools.count(random.randrange(_COUNT))


def free():
    """A port that nobody listens at, as at the one below; neither is given twice.

    The leader of a run has the port below that of its coordinator.
    """
    for place in itertools.islice(_places, _COUNT // 2):
        port = _FIRST + 2 * place % _COUNT + 1
        with socket.socket() as probe, socket.socket() as below:
            try:
                probe.bind(("", port))
                below.bind(("", port - 1))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")
