"""What a restart of the quick start takes: from a kill to the next step, by cause.

    .venv/bin/python tests/benchmarks/restarting.py

Two processes train the quick start's model with compiled programs from a cache of their own. Once a
checkpoint is there, process 1 is killed; when both have ended, they are started again, and so on.
The seconds by cause are those of process 0 in its own ledger. Processor seconds are those of a
process until its first step.
"""

import argparse
import collections
import pathlib
import statistics
import sys
import tempfile
import time

import psutil

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from faults import injections
from support import commands, harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gin_bindings", action="append", default=[], help="of the run")
    options = parser.parse_args()
    seconds = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        bindings = ["Run.num_epochs = 1000", "Cosine.warmup_epochs = 2", *options.gin_bindings]
        flags = [f"--gin_bindings={binding}" for binding in bindings]
        flags += ["--gin_file=runs/quickstart.gin", f"--workdir={workdir}"]
        environment = harness.environment(
            XDG_CACHE_HOME=f"{folder}/cache",
            PYTHONDONTWRITEBYTECODE="",  # a user's Python keeps what it compiles
            PYTHONPYCACHEPREFIX=f"{folder}/bytecode",
        )
        for attempt in range(options.rounds + 1):
            command = [*commands.NEST_DIST, "train", *flags]
            with harness.Group.of(2, command, environment=environment) as group:
                harness.wait_until(lambda: "first step " in group.said(), group.said)
                used = [_processor_seconds(process.pid) for process in group.processes]
                if attempt:
                    for cause, spent in injections.seconds_of_start(group).items():
                        if cause != "down":  # it reaches back to the last record before the kill
                            seconds[cause].append(spent)
                    seconds["processor, of one process"].append(statistics.mean(used))
                harness.wait_until(
                    lambda: list(workdir.glob("checkpoints/[0-9]*[0-9]")), group.said
                )
                killed = time.monotonic()
                group.processes[1].kill()
                group.wait()
                seconds["ending"].append(time.monotonic() - killed)
    total = sum(statistics.median(each) for name, each in seconds.items() if "," not in name)
    for name, each in seconds.items():
        print(f"{name:26} {statistics.median(each):5.1f}  {min(each):5.1f} to {max(each):5.1f}")
    print(f"{'from the kill to a step':26} {total:5.1f}")


def _processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
