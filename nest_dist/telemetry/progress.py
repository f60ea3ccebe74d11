"""What the lead process says: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Mapping

import rich.console
import rich.progress


class Progress:
    """Shows how far the run is; every other line goes through `say`, above the bar."""

    def __init__(self, first_step: int, num_steps: int, steps_per_epoch: float) -> None:
        self._num_steps = num_steps
        self._steps_per_epoch = steps_per_epoch
        self._console = rich.console.Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.TextColumn("epoch {task.fields[epoch]:.2f}"),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TextColumn("{task.fields[metrics]}"),
                rich.progress.TimeRemainingColumn(),
                console=self._console,
                refresh_per_second=2,
                speed_estimate_period=600,  # seconds; reports may be far apart
            )
            self._task = self._bar.add_task(
                "train", total=num_steps, completed=first_step, epoch=0.0, metrics=""
            )
            self._bar.start()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line for the metrics of a step, or the bar moved on; nothing if none is for here."""
        epoch = step / self._steps_per_epoch
        if self._bar is not None and "train/loss" in metrics:
            text = _texts(metrics, ("train/loss", "speed/images_per_second"))
            self._bar.update(self._task, completed=step, epoch=epoch, metrics=text)
        elif text := _texts(metrics, _SHOWN):
            self.say(f"step {step}/{self._num_steps}  epoch {epoch:.2f}  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


class Tally:
    """Shows how many of a known number of things are done."""

    def __init__(self, total: int, things: str, every_seconds: float = 10) -> None:
        """Starts the clock.

        Args:
            total: how many there are.
            things: what they are called.
            every_seconds: time between lines where there is no terminal.
        """
        self._total = total
        self._things = things
        self._every_seconds = every_seconds
        self._console = rich.console.Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._first: int | None = None  # done by an earlier run
        self._started = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[text]}"),
                rich.progress.TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total, text="")
            self._bar.start()

    def report(self, done: int) -> None:
        """Shows a new number, as a line only now and then."""
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        rate = (done - self._first) / max(now - self._started, 1e-3)
        text = f"{done:,} of {self._total:,} {self._things}, {rate:,.0f}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif now - self._shown >= self._every_seconds:
            self._shown = now
            self._console.print(text, markup=False)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


_SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/accuracy": "accuracy {:.1%}",
    "train/learning_rate": "learning rate {:.2e}",
    "speed/images_per_second": "{:,.0f} images/s",
    "eval/loss": "test loss {:.4f}",
    "eval/top_1": "test top-1 {:.2%}",
    "eval/top_5": "test top-5 {:.2%}",
}


def _texts(metrics: Mapping[str, float], names: Iterable[str]) -> str:
    return "  ".join(_SHOWN[name].format(metrics[name]) for name in names if name in metrics)
