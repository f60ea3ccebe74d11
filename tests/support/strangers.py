"""Strangers at the ports of a run: `python -m support.strangers HOST PORT SEED`.

They say nonsense to the coordination service at PORT and to the leader below it.
"""

import contextlib
import json
import random
import socket
import sys


def words(rng):
    """What no process of the run would say."""
    hello = {"kind": "hello", "index": 1, "count": 2, "nonce": "", "proof": "0" * 64}
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 1 << 16)),
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"kind": "bye"}\n' * 10,
            b'{"kind": "failed", "code": 0, "cause": "all is well"}\n',
            json.dumps(hello).encode() + b"\n",
            b"",
        ]
    )


def main():
    host, port, seed = sys.argv[1:]
    rng, kept = random.Random(seed), []
    for _ in range(40):
        stranger = socket.create_connection((host, int(port) - rng.randrange(2)), timeout=10)
        with contextlib.suppress(OSError):  # it was turned away at once
            stranger.sendall(words(rng))
        if rng.random() < 0.5:
            stranger.close()
        else:
            kept.append(stranger)  # and says no more


if __name__ == "__main__":
    main()
