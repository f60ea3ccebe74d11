"""A program for the tests of the watch: ticks as training does, without a device.

    python -m support.watched --coordinator=... --num_processes=N --process_id=I WHAT@TICK ...

WHAT happens to this process at that tick: fail, input, stuck, exit or long (a step of ten seconds);
`unbegun` in place of all, and it never begins. It prints each tick, and ends as `nest-dist` does.
"""

import sys
import time

from absl import flags

from nest_dist.base import failures
from nest_dist.commands import cli
from nest_dist.parallel import hosts, hub, watch

TICKS = 60
TICK_SECONDS = 0.1


def main():
    values = flags.FlagValues()
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    flags.DEFINE_float("silent_seconds", 6.0, "", flag_values=values)
    flags.DEFINE_float("stuck_seconds", 4.0, "", flag_values=values)
    _, *what = values(sys.argv)
    hub.SILENT_SECONDS = values.silent_seconds
    events = {int(tick): name for name, _, tick in (it.partition("@") for it in what) if tick}

    def run(_):
        with watch.Watch() as watching:
            hosts.start(values.coordinator, values.num_processes, values.process_id)
            watching.connect(values.stuck_seconds)
            print("connected", flush=True)
            if "unbegun" in what:
                time.sleep(60)
            hosts.barrier("begin")
            watching.begin()
            ticks(watching, events)

    cli.COMMANDS = {"watched": cli.Command("", ())}
    sys.modules["nest_dist.commands.watched"] = type("Program", (), {"run": staticmethod(run)})
    cli.main(["watched"])


def ticks(watching, events):
    for tick in range(1, TICKS + 1):
        happens = events.get(tick)
        if happens == "fail":
            raise ZeroDivisionError("no divisor")
        if happens == "input":
            raise failures.BadInput("the disk is full; make room.")
        if happens == "stuck":
            with watching.phase("data_wait"):
                time.sleep(600)
        time.sleep(10 if happens == "long" else TICK_SECONDS)
        hosts.barrier(f"tick {tick}")  # in the place of a collective
        print("tick", tick, flush=True)
        if watching.tick():
            raise failures.Preempted(f"stopped after tick {tick}")


if __name__ == "__main__":
    main()
