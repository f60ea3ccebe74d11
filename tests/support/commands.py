"""Starting the project's commands as a user does, and reading what they leave behind."""

import json
import pathlib
import re
import sys

import numpy as np
import psutil
from support import harness

from nest_dist.checkpointing import reader

TOP = harness.TOP
NEST_DIST = (sys.executable, "-m", "nest_dist")

# The quick start on a model of a few thousand parameters, which compiles in seconds.
TINY = (
    "NesT.image_size = 16",
    "NesT.dim = 8",
    "NesT.heads = 1",
    "NesT.block_repeats = (1, 1)",
    "Digits.image_side = 16",
    "PaddedCrop.side = 16",
    "Cadence.log_every_steps = 1",
    "Cosine.warmup_epochs = 0.1",
)
# Half of that again, where the model does not matter.
ONE_LEVEL = ("NesT.num_hierarchies = 1", "NesT.block_repeats = (1,)")


def run_flags(*bindings):
    """Flags of `nest-dist train` for a tiny run, but for its folder."""
    return [
        "--gin_file=runs/quickstart.gin",
        *(f"--gin_bindings={binding}" for binding in (*TINY, *bindings)),
    ]


def tiny_flags(workdir, *bindings):
    """Flags of `nest-dist train` for a tiny run in `workdir`."""
    return [f"--workdir={workdir}", *run_flags(*bindings)]


def nest_dist(*arguments, devices=1, **more):
    """Runs one command to its end, as `harness.run` does."""
    environment = harness.environment(devices)
    return harness.run([*NEST_DIST, *arguments], environment=environment, **more)


class Local(harness.Process):
    """`launch/local.sh` with its processes."""

    def __init__(self, processes, devices, *arguments):
        flags = (f"--processes={processes}", f"--devices={devices}")
        super().__init__(["bash", "launch/local.sh", *flags, "--", *arguments])

    def processes(self):
        """psutil's processes that run nest-dist, by process number."""
        found = {}
        for child in self.descendants():
            try:
                words = child.cmdline()
            except psutil.Error:
                continue
            if "nest_dist" in words and words[1:2] == ["-m"]:
                numbers = [word for word in words if word.startswith("--process_id=")]
                found[int(numbers[0].split("=")[1]) if numbers else 0] = child
        return [found[number] for number in sorted(found)]


def local(processes, devices, *arguments):
    """Runs `launch/local.sh` to its end: exit status and output."""
    with Local(processes, devices, *arguments) as launcher:
        return launcher.wait(), launcher.said()


def metrics(workdir):
    """The JSON lines of a run."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def evaluations(workdir):
    """Those of the JSON lines that hold an evaluation."""
    return [line for line in metrics(workdir) if "eval/top_1" in line]


def begun(processes):
    """Whether an attempt of a run, a process or a group, knows from which step it goes on."""
    return bool(re.search(r" steps of \d+ examples", processes.said()))


def reached(workdir, step, processes):
    """Whether this attempt has written metrics of a step; lines before it are of earlier ones."""
    return begun(processes) and any(line["step"] >= step for line in metrics(workdir)[-3:])


def wait_for_step(workdir, step, processes):
    """Returns once a running attempt has written metrics of a step."""
    harness.wait_in(processes, lambda: reached(workdir, step, processes))


def cause(said):
    """The line with which nest-dist explains its end; empty if there is none."""
    return next(iter(re.findall(r"^nest-dist: (.*)$", said, flags=re.MULTILINE)[-1:]), "")


def losses(workdir):
    """Training loss by step."""
    return {line["step"]: line["train/loss"] for line in metrics(workdir) if "train/loss" in line}


def arrays(workdir, step=None):
    """Every array of a checkpoint's state; of the newest without `step`."""
    checkpoints = reader.Reader(pathlib.Path(workdir) / "checkpoints")
    return checkpoints.arrays(checkpoints.steps()[-1] if step is None else step)


def assert_same_bits(left, right):
    """Both states hold the same names and, to the last bit, the same numbers."""
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
