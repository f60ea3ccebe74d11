"""What watching costs: the quick start's steps with all that watches them on, and off.

    JAX_PLATFORMS=cpu .venv/bin/python tests/benchmarks/watching.py

Both train the same model on the same batches in one process and take turns, so that the neighbours
of this machine disturb both alike. On is TensorBoard, JSON lines, memory, the ledger, looking for
requests of a trace, and histograms of all parameters and gradients at every report; off is the bare
loop. The table shows the median of all rounds; the ratio is that of turns next to each other.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

from nest_dist.cluster import discovery, processes
from nest_dist.experiment import build
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import run as runs
from nest_dist.model import flops
from nest_dist.telemetry import goodput, profile, report
from nest_dist.train import loop, metrics_log

NEVER = 10**9


class Contender:
    """One way to run the loop, turn by turn."""

    def __init__(
        self, wired: experiments.Experiment, parts: loop.LoopCallbacks, log_every: int
    ) -> None:
        self.parts = parts
        self.state = wired.init_state()
        self.log_every = log_every
        self.steps = 0

    def turn(self, steps: int) -> tuple[float, float]:
        """Seconds a step on the clock, and of the processors."""
        intervals = loop.Intervals(self.steps + steps, self.log_every, (), NEVER)
        wall, processors = time.perf_counter(), time.process_time()
        self.state = loop.run(self.state, self.steps, intervals, self.parts)
        self.steps += steps
        wall, processors = time.perf_counter() - wall, time.process_time() - processors
        return wall / steps, processors / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="in a turn")
    options = parser.parse_args()
    processes.start(discovery.Peers())
    plain = build.build(runs.load(["runs/quickstart.gin"], []))
    binding = "Cadence.histograms_every_steps = 50"
    watched = build.build(runs.load(["runs/quickstart.gin"], [binding]))
    shapes, _ = plain.batch_shapes()
    batches = plain.training_batches(0)

    def parts(wired: experiments.Experiment, **others: object) -> loop.LoopCallbacks:
        return loop.LoopCallbacks(
            step=wired.train_step().lower(wired.state_shapes, shapes).compile(),
            batches=batches,
            steps_done=lambda state: int(state.step),
            evaluate=lambda *_: {},
            stop_reached=lambda: False,
            global_batch=wired.run.global_batch,
            **others,
        )

    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        shown = report.Report(workdir, 0, NEVER, 45.0, flops.training_flops(plain.run.model))
        shown.say_metrics = lambda *_: None  # the terminal belongs to the table
        ledger = goodput.Ledger()
        ledger.resume(workdir / "goodput.json", 0)

        def record(step: int, metrics: metrics_log.StepMetrics) -> None:
            shown.metrics(step, metrics)
            ledger.write(at_once=False)

        def save(step: int, *_: object) -> None:
            ledger.saved(step)
            shown.metrics(step, ledger.metrics())

        log_every = watched.run.cadence.log_every_steps
        with profile.Profiler(None, 5, workdir, log_every, print) as profiler:
            on = Contender(
                watched,
                parts(
                    watched,
                    report=record,
                    save=save,
                    before_step=profiler.before_step,
                    during=ledger.during,
                ),
                log_every,
            )
            off = Contender(
                plain, parts(plain, report=lambda *_: None, save=lambda *_: None), NEVER
            )
            for contender in (off, on):
                contender.turn(options.steps)
            rounds = [
                (off.turn(options.steps), on.turn(options.steps)) for _ in range(options.rounds)
            ]
        batches.close()
        shown.close()
    show(rounds)


def show(rounds: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    """Prints steps a second of both, and how much of the speed is left when watched."""
    print("           off steps/s   on steps/s   on / off")
    for index, name in enumerate(("clock", "processors")):
        without = [1 / off[index] for off, _ in rounds]
        watched = [1 / on[index] for _, on in rounds]
        ratio = statistics.median(a / b for a, b in zip(watched, without, strict=True))
        print(
            f"{name:10} {statistics.median(without):11.1f}  {statistics.median(watched):11.1f}"
            f"  {ratio:9.1%}"
        )


if __name__ == "__main__":
    main()
