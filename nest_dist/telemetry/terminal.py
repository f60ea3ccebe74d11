"""The output of the primary process: a progress bar on a terminal, plain lines in a file."""

import contextlib
import sys
import time
from collections.abc import Iterable, Mapping

import rich.console
import rich.progress

# Between lines of a `Tally` without a terminal.
EVERY_SECONDS = 10.0


class _Bar:
    """A bar on a terminal; nothing in a file."""

    def __init__(self, *columns: rich.progress.ProgressColumn, total: int, completed: int = 0):
        self._console = rich.console.Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar = rich.progress.Progress(
            *columns,
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=2,
            speed_estimate_period=600,  # seconds; reports may be far apart
        )
        self._task = self._bar.add_task("", total=total, completed=completed, epoch=0.0, text="")
        if self._console.is_terminal:
            self._bar.start()

    def say(self, text: str) -> None:
        """Prints a line above the bar, if there is still somebody to read it."""
        with contextlib.suppress(OSError, ValueError):
            self._console.print(text, markup=False)

    def close(self) -> None:
        if self._console.is_terminal:
            self._bar.stop()


class Progress(_Bar):
    """Shows the progress of a run; every other line goes through `say`."""

    def __init__(
        self, first_step: int, num_steps: int, steps_per_epoch: float, split: str = "test"
    ) -> None:
        super().__init__(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.TextColumn("epoch {task.fields[epoch]:.2f}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.fields[text]}"),
            total=num_steps,
            completed=first_step,
        )
        self._num_steps, self._steps_per_epoch, self._split = num_steps, steps_per_epoch, split

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints a line for the metrics of a step, or moves the bar; some metrics are not shown."""
        epoch = step / self._steps_per_epoch
        if self._console.is_terminal and "train/loss" in metrics:
            text = self._texts(metrics, ("train/loss", "speed/images_per_second"))
            self._bar.update(self._task, completed=step, epoch=epoch, text=text)
        elif text := "  ".join(filter(None, [self._texts(metrics, _SHOWN), _of_measures(metrics)])):
            self.say(f"step {step}/{self._num_steps}  epoch {epoch:.2f}  {text}")

    def _texts(self, metrics: Mapping[str, float], names: Iterable[str]) -> str:
        shown = (
            _SHOWN[name].format(metrics[name], self._split) for name in names if name in metrics
        )
        return "  ".join(shown)


class Tally(_Bar):
    """Shows how many of a known number of items are done."""

    def __init__(self, total: int, noun: str) -> None:
        super().__init__(
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            total=total,
        )
        self._total, self._noun = total, noun
        self._first: int | None = None  # done by an earlier run
        self._started = self._shown = time.monotonic()

    def report(self, done: int) -> None:
        """Shows a new number; in a file as a line every `EVERY_SECONDS`."""
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        rate = (done - self._first) / max(now - self._started, 1e-3)
        text = f"{done:,} of {self._total:,} {self._noun}, {rate:,.0f}/s"
        self._bar.update(self._task, completed=done, text=text)
        if not self._console.is_terminal and now - self._shown >= EVERY_SECONDS:
            self._shown = now
            self.say(text)


def _of_measures(metrics: Mapping[str, float]) -> str:
    """What an evaluation measures beside loss and accuracy."""
    names = [name for name in metrics if name.startswith("eval/") and name not in _SHOWN]
    return "  ".join(
        f"{name.removeprefix('eval/').replace('_', ' ')} "
        + (f"{metrics[name]:.4f}" if name.endswith("loss") else f"{metrics[name]:.2%}")
        for name in names
        if not name.endswith(("examples", "deviation"))
    )


# With the metric, and the name of the split.
_SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/accuracy": "accuracy {:.1%}",
    "train/precision_at_1": "precision at 1 {:.1%}",
    "train/learning_rate": "learning rate {:.2e}",
    "speed/images_per_second": "{:,.0f} images/s",
    "eval/loss": "{1} loss {0:.4f}",
    "eval/top_1": "{1} top-1 {0:.2%}",
    "eval/top_5": "{1} top-5 {0:.2%}",
    "eval/precision_at_1": "{1} precision at 1 {0:.2%}",
    "eval/mean_average_precision": "{1} mAP {0:.2%}",
}
