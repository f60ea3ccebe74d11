"""A start and an end of thousands of processes, rehearsed on one machine.

    python tests/benchmarks/thousand_hosts.py 64 256 1024 4096

Process 0 is a process of its own, with JAX's coordination service and the leader. The others are
clients of both in this process: JAX's own clients, a thread each, and connections to the leader,
which send a pulse each second. Prints a row for each number of processes:

    meet       until all have said hello, with their proofs, and heard that all have met
    connect    until JAX's own clients are connected
    agree      one `processes.decide` of all: each sets a key, one verdict comes back
    requests   of all at the coordination service, for that
    dead       until all know that a process is gone whose connection broke
    silent     until all know of one that says nothing more, SILENT_SECONDS included
    end        from the goodbye of the first to the word that all have finished
    leader     share of a core that process 0 takes while all send their pulses
    memory     of process 0, MB at its largest; and its descriptors
"""

import asyncio
import collections
import concurrent.futures
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time

import psutil

SECRET = b"of the rehearsal"
WAIT_SECONDS, PULSES = 300, 5
SILENT_SECONDS = 10.0
FIRST = 64  # the row under which the table has its head
LIMITS = {"heartbeat_timeout": 2_000_000_000}
CONNECTED: list["Counting"] = []
STACK = "loop.py:131 run < session.py:81 train < training.py:133 run < train.py:47 run"


def process_0(count: int, port: int, serves_jax: int) -> None:
    """The leader and, if asked, the coordination service, until its standard input ends."""
    from nest_dist.cluster import addresses, leader, protocol

    # While thousands of JAX's clients connect in one process, its pulses come late.
    protocol.SILENT_SECONDS = 600.0 if serves_jax else SILENT_SECONDS
    ours, theirs = socket.socketpair()
    server = addresses.listen("127.0.0.1", port - 1)
    leading = leader.Leader(count, server, WAIT_SECONDS, theirs, 600, SECRET)
    protocol.greet(ours, SECRET, 0, count)
    threading.Thread(target=_pulse, args=(ours,), daemon=True).start()
    if serves_jax:
        threading.Thread(target=_coordinate, args=(count, port), daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "bye":
            ours.sendall(protocol.encode("bye"))
    del leading


def _pulse(connection: socket.socket) -> None:
    from nest_dist.cluster import protocol

    while True:
        connection.sendall(_pulse_text(protocol))
        connection.recv(1 << 16)
        time.sleep(1)


def _coordinate(count: int, port: int) -> None:
    from jax._src.lib import _jax

    from nest_dist.cluster import processes

    address = f"127.0.0.1:{port}"
    service = _jax.get_distributed_runtime_service(address, count, **LIMITS)
    client = _jax.get_distributed_runtime_client(address, 0, init_timeout=600, **LIMITS)
    client.connect()
    counting = Counting(client)
    verdict = processes.Exchange(counting, 0, count).decide("rehearsal", 0, len)
    print(json.dumps({"verdict": verdict, "requests": counting.requests.total()}), flush=True)
    threading.Event().wait()
    del service


def _pulse_text(protocol) -> bytes:
    return protocol.encode(
        "pulse", tick=1, held=False, phase="step", seconds=0.1, waited=0.1, stack=STACK
    )


class Counting:
    """A client of the coordination service that counts its requests."""

    def __init__(self, client) -> None:
        self._client, self.requests = client, collections.Counter()

    def __getattr__(self, name: str):
        def request(*arguments):
            self.requests[name] += 1
            return getattr(self._client, name)(*arguments)

        return request


class Members:
    """The connections of all other processes to the leader."""

    def __init__(self, count: int, port: int) -> None:
        from nest_dist.cluster import protocol

        self._count, self._port, self._protocol = count, port, protocol
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._heard: dict[str, int] = collections.Counter()
        self.silent: set[int] = set()

    async def meet(self) -> float:
        began = time.monotonic()
        indices = range(1, self._count)
        self._tasks = [asyncio.create_task(self._member(index)) for index in indices]
        await self.heard("met")
        self._tasks.append(asyncio.create_task(self._pulse()))
        return time.monotonic() - began

    async def heard(self, kind: str, but: int = 0) -> None:
        while self._heard[kind] < self._count - 1 - but:
            assert kind == "end" or not self._heard["end"], "the leader has ended the rehearsal"
            await asyncio.sleep(0.02)

    def say(self, kind: str, **fields: object) -> None:
        for writer in self._writers.values():
            writer.write(self._protocol.encode(kind, **fields))

    def drop(self, index: int) -> None:
        self._writers.pop(index).transport.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in self._writers.values():
            writer.close()

    async def _member(self, index: int) -> None:
        reader, writer = await self._greeted(index)
        self._writers[index] = writer
        async for line in reader:
            if b'"pulse"' not in line:
                self._heard[json.loads(line)["kind"]] += 1

    async def _greeted(self, index: int):
        """What `protocol.greet` does, without a thread for each."""
        from nest_dist.cluster import secret

        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port - 1)
                nonce = json.loads(await reader.readline())["nonce"]
                words = (nonce, "mine", index, self._count)
                proof = secret.proof(SECRET, "process", *words)
                writer.write(
                    self._protocol.encode(
                        "hello", index=index, count=self._count, nonce="mine", proof=proof
                    )
                )
                welcome = json.loads(await reader.readline())
            except (OSError, ValueError):
                await asyncio.sleep(0.2)
                continue
            assert secret.is_proof(welcome["proof"], SECRET, "leader", *words), welcome
            return reader, writer

    async def _pulse(self) -> None:
        text = _pulse_text(self._protocol)
        while True:
            for index, writer in list(self._writers.items()):
                if index not in self.silent:
                    writer.write(text)
            await asyncio.sleep(1)


def start_process_0(count: int, port: int, serves_jax: bool) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "process_0", *map(str, (count, port, int(serves_jax)))]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def rehearse(count: int, port: int) -> None:
    """Prints one row of the table, and ends this process."""
    row: dict[str, object] = {"processes": count}
    dead = await lose(count, port + 2, lambda members: members.drop(count // 2))
    silent = await lose(count, port + 4, lambda members: members.silent.add(count // 2))
    zero = start_process_0(count, port, serves_jax=True)
    watched, members = psutil.Process(zero.pid), Members(count, port)
    row["meet s"] = await members.meet()
    row.update(await asyncio.to_thread(coordinate, count, port, zero))
    before, began = watched.cpu_times(), time.monotonic()
    await asyncio.sleep(PULSES)
    now, seconds = watched.cpu_times(), time.monotonic() - began
    row["dead s"], row["silent s"] = dead, silent
    began = time.monotonic()
    members.say("bye")
    print("bye", file=zero.stdin, flush=True)
    await members.heard("done")
    row["end s"] = time.monotonic() - began
    row["leader %"] = 100 * (sum(now[:2]) - sum(before[:2])) / seconds
    row["memory MB"] = watched.memory_info().rss / 1e6
    row["descriptors"] = watched.num_fds()
    if count == FIRST:
        print("| " + " | ".join(row) + " |")
        print("|---" * len(row) + "|")
    cells = (f"{value:.2f}" if isinstance(value, float) else f"{value:,}" for value in row.values())
    print("| " + " | ".join(cells) + " |", flush=True)
    zero.kill()
    os._exit(0)  # else JAX's clients would abort


async def lose(count: int, port: int, happen) -> float:
    """Seconds until all others know of a process that is lost."""
    with start_process_0(count, port, serves_jax=False) as zero:
        members = Members(count, port)
        await members.meet()
        await asyncio.sleep(2)
        began = time.monotonic()
        happen(members)
        await members.heard("end", but=1)
        await members.close()
        zero.kill()
        return time.monotonic() - began


def coordinate(count: int, port: int, zero: subprocess.Popen[str]) -> dict[str, object]:
    """JAX's own clients connect, and all agree."""
    from jax._src.lib import _jax

    from nest_dist.cluster import processes

    with concurrent.futures.ThreadPoolExecutor(count) as pool:

        def connect(index: int):
            address = f"127.0.0.1:{port}"
            client = _jax.get_distributed_runtime_client(address, index, init_timeout=600, **LIMITS)
            client.connect()
            return Counting(client)

        def decide(index: int) -> int:
            return processes.Exchange(clients[index - 1], index, count).decide(
                "rehearsal", index, len
            )

        began = time.monotonic()
        clients = list(pool.map(connect, range(1, count)))
        CONNECTED.extend(clients)  # else they would say goodbye here, and wait for all others
        connected = time.monotonic()
        verdicts = set(pool.map(decide, range(1, count)))
        agreed = time.monotonic()
    first = json.loads(zero.stdout.readline())
    assert verdicts == {count} == {first["verdict"]}, verdicts
    requests = first["requests"] + sum(client.requests.total() for client in clients)
    return {"connect s": connected - began, "agree s": agreed - connected, "requests": requests}


def main() -> None:
    what, *numbers = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    if what == "process_0":
        process_0(*map(int, numbers))
    elif what == "row":
        asyncio.run(rehearse(*map(int, numbers)))
    else:
        for number in (what, *numbers):
            port = str(random.randrange(10000, 32000, 8))
            subprocess.run([sys.executable, __file__, "row", number, port], check=True)


if __name__ == "__main__":
    main()
