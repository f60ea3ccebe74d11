"""What learning beyond one label brings on Fashion-MNIST, by shipped runs and real commands.

    .venv/bin/python tests/benchmarks/laptop_proofs.py FOLDER

Each run adds a line to FOLDER/results.jsonl. Started again, the script goes on: with the runs that
have no line yet, and with one that was broken off from its last checkpoint. At the end, and with
--summary alone, it prints what the lines say, and draws FOLDER/proofs.png.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from nest_dist.telemetry import curves, pictures

SEEDS = (0, 1, 2)
RATES = ("1e-3", "2e-3", "5e-4")  # all tried alike, whatever a run starts from
EPOCHS = 4  # of teacher, students and sets of one label

# Other work on the machine may leave little to this.
PATIENT = "Watch.stuck_seconds = 7200"
# The choice among rates is made here. Pretraining has seen these pictures without labels.
HELD_OUT = (
    "Run.evaluations = (@Evaluation(), @held_out/Evaluation())",
    "held_out/Evaluation.name = 'held_out'",
    "held_out/Evaluation.every_epochs = 60",
    "held_out/Evaluation.data = @held_out/EvaluationData()",
    "held_out/EvaluationData.source = @held_out/Idx()",
    "held_out/Idx.split = 'train[-5000:]'",
)
NEIGHBOURS = (
    "Evaluation.measures = (@KNearest(),)",
    "Evaluation.reference = @reference/EvaluationData()",
    "reference/EvaluationData.source = @reference/Idx()",
    "reference/EvaluationData.transforms = (@CentrePad(),)",
    "reference/Idx.split = 'train[:10000]'",
)
SELDOM = (*NEIGHBOURS, "Evaluation.every_epochs = 5")
MASKED = (
    *NEIGHBOURS,
    "Step.objective = @MaskedImages()",
    "MaskedImages.unit = 8",
    "Run.num_epochs = 20",
    "Run.global_batch = 256",
    "AdamW.peak_learning_rate = 1e-3",
    "Evaluation.every_epochs = 10",
)
# A step of no length, after which the model has its initial values.
NOT_TRAINED = (
    *NEIGHBOURS,
    "Run.num_epochs = '1 steps'",
    "Cosine.warmup_epochs = 0",
    "AdamW.peak_learning_rate = 1e-30",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        name: also that of its workdir below FOLDER.
        gin_files: of the run.
        bindings: beside its seed.
        seed: of the run.
    """

    name: str
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]
    seed: int


def jobs(folder: pathlib.Path) -> Iterator[Job]:
    """Everything, in an order in which the first runs already tell something."""
    yield from without_labels(folder, "two_views", SEEDS[:1])
    yield from distilled(folder)
    yield from without_labels(folder, "two_views", SEEDS[1:])
    yield from without_labels(folder, "masked", SEEDS)


def without_labels(folder: pathlib.Path, objective: str, seeds: Sequence[int]) -> Iterator[Job]:
    """Pretraining by an objective, then 600 labels with it and without."""
    two_views, few = ("runs/fashion_mnist_two_views.gin",), ("runs/fashion_mnist_few_labels.gin",)
    ways = {"two_views": (two_views, SELDOM), "masked": (("runs/fashion_mnist.gin",), MASKED)}
    for seed in seeds:
        weights = f"{objective}/seed_{seed}"
        yield Job(weights, *ways[objective], seed)
        yield Job(f"initial/seed_{seed}", two_views, NOT_TRAINED, seed)
        for rate in RATES:
            tuned = (*HELD_OUT, f"AdamW.peak_learning_rate = {rate}")
            start = f"pretrained = '{folder / weights}'"
            yield Job(f"few_labels/{objective}/{rate}/seed_{seed}", few, (*tuned, start), seed)
            alone = (*tuned, "Run.init_from = None")
            yield Job(f"few_labels/nothing/{rate}/seed_{seed}", few, alone, seed)


def distilled(folder: pathlib.Path) -> Iterator[Job]:
    """A teacher, students with it and without, and the teacher's task by sigmoids."""
    whole, student = ("runs/fashion_mnist.gin",), ("runs/fashion_mnist_distilled.gin",)
    short = (f"Run.num_epochs = {EPOCHS}",)
    yield Job("teacher", whole, short, 0)
    for seed in SEEDS:
        taught = (*short, f"Distillation.teacher = '{folder / 'teacher'}'")
        yield Job(f"student/taught/seed_{seed}", student, taught, seed)
        alone = (*short, "Step.objective = @Classification()")
        yield Job(f"student/alone/seed_{seed}", student, alone, seed)
    yield Job("sets", (*whole, "objective/multi_label.gin"), short, 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not options.summary:
        for job in jobs(folder):
            if job.name not in results(folder):
                done(folder, job)
    print("\n".join(summary(results(folder))))
    draw(folder)


def results(folder: pathlib.Path) -> dict[str, dict]:
    """The metrics of each job that is done, by its name."""
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["name"]: line["metrics"] for line in map(json.loads, lines)}


def done(folder: pathlib.Path, job: Job) -> None:
    """Does a job, and adds its line."""
    workdir, start = folder / job.name, time.perf_counter()
    bindings = (f"Run.seed = {job.seed}", PATIENT, *job.bindings)
    own = [f"--gin_bindings={binding}" for binding in bindings]
    gin_files = [f"--gin_file={name}" for name in job.gin_files]
    command = [sys.executable, "-m", "nest_dist", "train", *gin_files, *own]
    ended = subprocess.run([*command, f"--workdir={workdir}"], stdout=sys.stderr)
    if ended.returncode:
        raise SystemExit(f"{job.name} ended with {ended.returncode}")
    minutes = (time.perf_counter() - start) / 60
    line = {"name": job.name, "metrics": last_measured(workdir), "minutes": round(minutes, 1)}
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps({**line, "load": os.getloadavg()[1]}) + "\n")
    print(json.dumps(line), flush=True)


def measured(workdir: pathlib.Path) -> list[dict]:
    """The lines of a run that have metrics of evaluations."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if any(name.startswith("eval/") for name in line)]


def last_measured(workdir: pathlib.Path) -> dict[str, float]:
    """The last value of each metric of evaluations."""
    return {
        name: value
        for line in measured(workdir)
        for name, value in line.items()
        if name.startswith("eval/")
    }


def summary(found: dict[str, dict]) -> list[str]:
    """A line for each comparison of which something is there."""
    lines = []
    for start in ("nothing", "two_views", "masked"):
        by_rate = {
            rate: [
                found[name]
                for seed in SEEDS
                if (name := f"few_labels/{start}/{rate}/seed_{seed}") in found
            ]
            for rate in RATES
        }
        by_rate = {rate: runs for rate, runs in by_rate.items() if runs}
        if by_rate:
            best = max(by_rate, key=lambda rate: mean(by_rate[rate], "eval/held_out/top_1"))
            rates = ", ".join(by_rate)
            text = told(by_rate[best], "eval/top_1")
            lines.append(f"600 labels from {start}: {text}, at {best} of {rates}")
    for start in ("initial", "two_views", "masked"):
        runs = [found[name] for seed in SEEDS if (name := f"{start}/seed_{seed}") in found]
        if runs:
            lines.append(f"20 nearest neighbours, {start}: {told(runs, 'eval/knn_20')}")
    for kind in ("alone", "taught"):
        names = [f"student/{kind}/seed_{seed}" for seed in SEEDS]
        if runs := [found[name] for name in names if name in found]:
            lines.append(f"student {kind}: {told(runs, 'eval/top_1')}")
    for name, metric in (("teacher", "eval/top_1"), ("sets", "eval/precision_at_1")):
        if name in found:
            lines.append(f"{name}: {told([found[name]], metric)}")
    return lines


def mean(runs: Sequence[dict], metric: str) -> float:
    return statistics.fmean(run[metric] for run in runs)


def told(runs: Sequence[dict], metric: str) -> str:
    each = ", ".join(f"{run[metric]:.2%}" for run in runs)
    return f"{mean(runs, metric):.2%} ({each})"


def draw(folder: pathlib.Path) -> None:
    """Test accuracy over the steps, of what is compared beside each other."""
    rate = RATES[0]
    chosen = {
        "600 labels: test accuracy": {
            "from nothing": f"few_labels/nothing/{rate}/seed_0",
            "from two views": f"few_labels/two_views/{rate}/seed_0",
        },
        "a small NesT: test accuracy": {
            "from labels": "student/alone/seed_0",
            "from a teacher": "student/taught/seed_0",
        },
    }
    panels = []
    for title, runs in chosen.items():
        lines = [
            {"step": line["step"], label: line["eval/top_1"]}
            for label, name in runs.items()
            if (folder / name / "metrics.jsonl").exists()
            for line in measured(folder / name)
            if "eval/top_1" in line
        ]
        panel = curves.Panel(title, {label: label for label in runs}, "{:.0%}")
        panels.append(curves.sheet([panel], lines))
    (folder / "proofs.png").write_bytes(pictures.encoded(np.hstack(panels), True))


if __name__ == "__main__":
    main()
