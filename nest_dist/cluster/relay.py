"""A relay between JAX's client and its coordination service on process 0.

The client aborts its process, with a stack of C++, as soon as its connection breaks. The supervisor
knows better why, and ends the process in one line. So a small process of its own stands between
them, which never lets the client know that process 0 is gone.

    python relay.py DESCRIPTOR HOST PORT
"""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import time

CHUNK_BYTES = 1 << 16
RETRY_SECONDS = 0.1


# Kept, since its end of the pipe must not be closed.
_started: list[subprocess.Popen[bytes]] = []


def start(host: str, port: int) -> str:
    """Starts the relay, which ends with this process; the address for JAX's client."""
    name = f"nest_dist_{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        words = [sys.executable, "-IS", __file__, str(server.fileno()), host, str(port)]
        # The end of its standard input says that this process has ended.
        relay = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[server.fileno()])
    _started.append(relay)
    return f"unix-abstract:{name}"


def main() -> None:
    """Serves connections until the process that started it has ended."""
    descriptor, host, port = sys.argv[1:]
    server = socket.socket(fileno=int(descriptor))
    threading.Thread(target=_serve, args=(server, host, int(port)), daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)


def _serve(server: socket.socket, host: str, port: int) -> None:
    while True:
        client, _ = server.accept()
        threading.Thread(target=_connect, args=(client, host, port), daemon=True).start()


def _connect(client: socket.socket, host: str, port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            service = socket.create_connection((host, port))
            break
        time.sleep(RETRY_SECONDS)
    service.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_pump, args=(client, service), daemon=True).start()
    _pump(service, client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Carries bytes; when the source ends, the target does not learn of it."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)


if __name__ == "__main__":
    main()
