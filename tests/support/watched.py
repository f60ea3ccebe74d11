"""A program for the tests of the watch: ticks as training does, without a device.

    python -m support.watched --coordinator=... --num_processes=N --process_id=I WHAT@TICK ...

WHAT happens to this process at that tick: fail, input, stuck, stalled (waits for data that never
comes), or long (a step of ten seconds). In place of all, `unbegun`: it never begins; `gone`: it is
killed after its goodbye. It prints each tick, and ends as `nest-dist` does.
"""

import os
import signal
import sys
import time

from nest_dist import __main__ as program
from nest_dist.cluster import stop_signals

TICKS = 60
TICK_SECONDS = 0.1


def main():
    stop_signals.hold_back()
    from nest_dist.cluster import protocol
    from nest_dist.commands import table

    protocol.SILENT_SECONDS = 6.0
    table.FLAGS["stuck_seconds"] = table.Flag("integer", 4, "")
    table.COMMANDS = {
        "watched": table.Command("", (*table.HOSTS, "stuck_seconds"), "WHAT@TICK ...")
    }
    sys.modules["nest_dist.commands.watched"] = sys.modules[__name__]
    sys.argv[1:1] = ["watched"]
    program.main()


def run(options):
    from nest_dist.cluster import processes, supervisor
    from nest_dist.commands import cli

    what = options.arguments
    with supervisor.Supervisor() as watching:
        if "gone" in what:
            send = watching._send
            watching._send = lambda kind, **more: (send(kind, **more), kind == "bye" and end())
        watching.start(**cli.hosts(options))
        print("connected", flush=True)
        if "unbegun" in what:
            time.sleep(1e6)
        processes.barrier("begin")
        watching.begin(options.stuck_seconds)
        ticks(
            watching,
            {int(tick): name for name, _, tick in (it.partition("@") for it in what) if tick},
        )


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def ticks(watching, events):
    from nest_dist.base import failures
    from nest_dist.cluster import processes

    for tick in range(1, TICKS + 1):
        happens = events.get(tick)
        if happens == "fail":
            raise ZeroDivisionError("no divisor")
        if happens == "input":
            raise failures.BadInput("the disk is full; make room.")
        if happens == "stuck":
            with watching.phase("data_wait"):
                time.sleep(1e6)
        while happens == "stalled" and not watching.stop_is_next():
            time.sleep(0.1)
        if watching.tick():
            raise failures.Preempted(f"stopped after tick {tick - 1}")
        time.sleep(10 if happens == "long" else TICK_SECONDS)
        processes.barrier(f"tick {tick}")  # in the place of a collective
        print("tick", tick, flush=True)


if __name__ == "__main__":
    main()
