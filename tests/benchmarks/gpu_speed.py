"""NesT-T, S and B at 224 pixels on one GPU, in bfloat16: ours and timm's, one table.

    .venv/bin/python tests/benchmarks/gpu_speed.py

It installs nothing and ends within --minutes (8). Ours has XLA's plain attention and cuDNN's; timm
has torch.compile, channels-last and AMP. Each contender is a process of its own, one after the
other, so that each has the GPU for itself. What time does not allow is left out and named.
--torch names a Python with torch and timm, if this one has none. --cpu takes a small model on the
CPU, to show that the benchmark works; its numbers mean nothing.
"""

import argparse
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parent
TOP = HERE.parents[1]
SIZES = ("nest_tiny", "nest_base", "nest_small")
CONTENDERS = ("plain", "cudnn", "timm")
BATCHES = (256, 64, 512, 128)  # in order of importance
# By size and part, of one image: FLOPs, and the share of the peak that one a second takes.
NEEDED: dict[tuple[str, str], tuple[float, float | None]] = {}
ROW = "{:<12}{:<8}{:<12}{:>7}{:>12}{:>10}{:>8}{:>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--torch", default=sys.executable)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes - 20
    sizes, batches = (("small",), (4, 2)) if options.cpu else (SIZES, BATCHES)
    print(ROW.format("model", "ours", "part", "batch", "images/s", "TFLOP/s", "peak", "GB"))
    left_out = []
    cases = [(size, contender) for size in sizes for contender in CONTENDERS]
    reserve = 45 if not options.cpu else 0  # for errors and the two processes
    for number, (size, contender) in enumerate(cases):
        share = (end - reserve - time.monotonic()) / (len(cases) - number)
        seen, reason = measure(size, contender, batches, share, options)
        expected = {(part, batch) for part in ("train step", "forward") for batch in batches}
        if missing := expected - seen:
            left_out.append(f"{size} {contender}: {len(missing)} of {len(expected)} ({reason})")
    for line in left_out:
        print(f"not measured: {line}")
    for attention in ("plain", "cudnn"):
        print(errors(attention, options.cpu))
    print(two_processes(options.cpu))


def measure(
    size: str, contender: str, batches: tuple[int, ...], seconds: float, options: argparse.Namespace
) -> tuple[set[tuple[str, int]], str]:
    """Prints the rows of a contender; gives what was measured, and why the rest was not."""
    script = "gpu_timm.py" if contender == "timm" else "gpu_nest_dist.py"
    python = options.torch if contender == "timm" else sys.executable
    command = [python, "-u", HERE / script, size, contender, ",".join(map(str, batches))]
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment(options.cpu),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    seen: set[tuple[str, int]] = set()
    reason, end = "no time", time.monotonic() + max(seconds, 1)
    while (left := end - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            break
        if line is None:
            process.wait()
            reason = (
                (process.stderr.read() if process.stderr else "").strip() or "-"
            ).splitlines()[-1]
            break
        row = json.loads(line)
        seen.add((row["part"], row["batch"]))
        if contender != "timm":
            share = row["share"] / row["speed"] if row["share"] else None
            NEEDED[size, row["part"]] = row["flops"] / row["speed"], share
        needed, share = NEEDED.get((size, row["part"]), (0.0, None))  # the model is the same
        row["flops"] = needed * row["speed"]
        peak = f"{share * row['speed']:.0%}" if share else "-"
        memory = f"{row['bytes'] / 1e9:.2f}" if row["bytes"] else "-"
        print(
            ROW.format(
                *(size, contender, row["part"], row["batch"], f"{row['speed']:,.1f}"),
                *(f"{row['flops'] / 1e12:,.2f}", peak, memory),
            ),
            flush=True,
        )
    process.kill()
    process.wait()
    return seen, reason


def errors(attention: str, cpu: bool) -> str:
    """The largest error of ours on a small model, beside float64."""
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu_nest_dist.py"), "errors", attention, ""],
        env=environment(cpu),
        capture_output=True,
        text=True,
    )
    last = ((done.stdout if done.returncode == 0 else done.stderr).strip() or "-").splitlines()[-1]
    return f"error beside float64, {attention}: {last}"


def two_processes(cpu: bool) -> str:
    """A few steps in two processes, with parameters sharded over both."""
    devices = ["--devices=1"] if cpu else ["--gpus=2"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *("bash", TOP / "launch" / "local.sh", "--processes=2", *devices, "--"),
                *("--gin_file=runs/quickstart.gin", "--gin_file=mesh/fsdp.gin"),
                *("--gin_bindings=Run.num_epochs = 0.3", f"--workdir={folder}/run"),
                "--gin_bindings=Cosine.warmup_epochs = 0.1",
            ],
            env={**environment(cpu), "NEST_DIST_PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )
    if done.returncode == 0:
        return "two processes with FSDP: trained"
    # NCCL refuses two processes on one GPU, so this needs two.
    said = [line for line in done.stdout.splitlines() if "nest-dist: " in line]
    return f"two processes with FSDP: {[*said, *done.stderr.splitlines(), '-'][0]}"


def environment(cpu: bool) -> dict[str, str]:
    """Of a contender."""
    chosen = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    path = os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2", **chosen}


if __name__ == "__main__":
    main()
