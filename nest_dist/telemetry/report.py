"""The records of a run: TensorBoard, JSON lines, and the terminal."""

import concurrent.futures
import math
import pathlib
import time
import typing
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from nest_dist.base import files, ranking
from nest_dist.telemetry import (
    curves,
    goodput,
    histograms,
    pictures,
    records,
    staging,
    system,
)

if typing.TYPE_CHECKING:
    from nest_dist.telemetry import terminal, writer
    from nest_dist.telemetry.trackers import channel

EVENTS = "tensorboard"
CURVES = "curves.png"
FLUSH_SECONDS = 30
# Share of a step's time, from which waiting for data is worth a line.
SLOW_DATA = 0.2


class Report:
    """Writes WORKDIR/tensorboard and WORKDIR/metrics.jsonl, and shows the progress of a run.

    It does so on the primary process, and nothing on the others.
    """

    def __init__(
        self,
        workdir: pathlib.Path | None,
        first_step: int,
        num_steps: int,
        steps_per_epoch: float,
        flops_per_image: float,
        missing: Collection[str] = (),
        split: str = "test",
        tracker: "channel.Channel | None" = None,
    ) -> None:
        """Begins after `first_step`; discards later entries of an earlier attempt.

        Args:
            workdir: folder of the run; None on all processes but the primary one.
            flops_per_image: floating-point operations that training needs for one image.
            missing: metrics; entries of `first_step` that have one are discarded, too.
            tracker: which receives metrics and pictures, too.
        """
        self._tracker = tracker
        self._workdir, self._flops_per_image, self._split = workdir, flops_per_image, split
        self._progress: terminal.Progress | None = None
        self._events: writer.Events | None = None
        self._flushed, self._retry_at = time.monotonic(), 0.0
        self._waits: list[float] = []  # shares of windows, until a line was said
        if workdir is not None:
            from nest_dist.telemetry.terminal import Progress

            self._lines = workdir / staging.METRICS
            self._syncing = concurrent.futures.ThreadPoolExecutor(1, "metrics")
            self._progress = Progress(first_step, num_steps, steps_per_epoch, split)
            self.rewind(first_step, missing)

    def rewind(self, step: int, missing: Collection[str] = ()) -> None:
        """Discards all records after `step`, from which the run continues; see `__init__`."""
        if self._workdir is None:
            return

        def keep(line: records.Line) -> bool:
            again = line["step"] == step and not line.keys().isdisjoint(missing)
            return line["step"] <= step and not again

        kept = records.truncate(self._lines, keep)
        top_1 = {line["step"]: line["eval/top_1"] for line in kept if "eval/top_1" in line}
        self._top_1 = {it: top if isinstance(top, float) else math.nan for it, top in top_1.items()}
        self._write(lambda events: events.discard_from(step + 1))

    def metrics(self, step: int, metrics: Mapping[str, float | np.ndarray]) -> None:
        """Records and shows metrics of a step; arrays are histograms."""
        if self._workdir is None:
            return
        scalars = {it: value for it, value in metrics.items() if not isinstance(value, np.ndarray)}
        if "speed/images_per_second" in scalars:
            scalars |= system.metrics(scalars, self._flops_per_image)
        if "eval/top_1" in scalars:
            self._top_1[step] = scalars["eval/top_1"]

        def add(events: "writer.Events") -> None:
            for name, value in {**metrics, **scalars}.items():
                if not isinstance(value, np.ndarray):
                    events.add_scalar(name, value, step)
                elif histogram := histograms.read(value):
                    events.add_histogram_raw(name, **histogram, global_step=step)

        records.append(self._lines, {"step": step, **ranking.without_nan(scalars)})
        self._write(add)
        if self._tracker is not None:
            self._tracker.scalars(step, scalars)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        self.say_metrics(step, scalars)
        if any(name.startswith("eval/") for name in scalars):
            self._syncing.submit(self._draw_curves)
        self._say_slow_data(scalars)

    def say_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows metrics without recording them."""
        if self._progress is not None:
            self._progress.report(step, metrics)

    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(text)

    def text(self, name: str, text: str, step: int) -> None:
        self._write(lambda events: events.add_text(name, "```\n" + text + "\n```", step))

    def hparams(self, values: Mapping[str, bool | float | str]) -> None:
        """Records the values by which TensorBoard compares this run with others."""
        self._write(lambda events: events.add_run_hparams(values))

    def page(
        self, name: str, images: np.ndarray, captions: Sequence[pictures.Caption], step: int
    ) -> None:
        """Records pictures uint8 [N, H, W, C] over their captions."""
        # PNG shows each pixel of small pictures; JPEG is small for photographs.
        small = images.shape[1] < pictures.SMALLEST_SIDE
        self._sheet(name, lambda: pictures.page(images, captions), small, step)

    def picture(self, name: str, image: np.ndarray, lossless: bool, step: int) -> None:
        """Records one picture uint8 [H, W, 3], as PNG or as JPEG."""
        self._sheet(name, lambda: image, lossless, step)

    def _sheet(self, name: str, draw: Callable[[], np.ndarray], lossless: bool, step: int) -> None:
        self._write(lambda events: events.add_sheet(name, draw(), lossless, step))
        if self._tracker is not None:
            self._tracker.picture(step, name, draw, lossless)

    def summary(self, num_steps: int, global_batch: int, ledger: goodput.Ledger) -> None:
        """Shows the results of a finished run, and its time by cause."""
        if self._workdir is None:
            return
        self.say(f"done: {num_steps} steps, {num_steps * global_batch:,} examples")
        if top_1 := self._top_1:
            best, last = max(top_1, key=lambda step: ranking.merit(top_1[step])), max(top_1)
            self.say(
                f"{self._split} top-1: best {top_1[best]:.2%} at step {best}, "
                f"last {top_1[last]:.2%} at step {last}"
            )
        causes = (
            f"{cause.replace('_', ' ')} {_duration(seconds)}"
            for cause, seconds in ledger.seconds.items()
        )
        total = _duration(sum(ledger.seconds.values()))
        self.say(f"time: {total} over all attempts: {', '.join(causes)}")

    def flush(self) -> None:
        """Gives events to the system; brings JSON lines to the disk, in the background."""
        self._write(lambda events: events.flush())
        if self._workdir is not None:
            self._syncing.submit(records.sync, self._lines)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Restores the terminal, and flushes and closes both files."""
        if self._progress is not None:
            self._progress.close()
        self._write(lambda events: events.close())
        if self._workdir is not None:
            self._syncing.submit(records.sync, self._lines)
            self._syncing.shutdown()

    def _say_slow_data(self, metrics: Mapping[str, float]) -> None:
        """Says once that the devices wait for data, after two windows in a row that did."""
        if "time/data_wait_fraction" not in metrics or len(self._waits) > 1:
            return
        share = metrics["time/data_wait_fraction"]
        self._waits = [*self._waits, share] if share > SLOW_DATA else []
        if len(self._waits) > 1:
            self.say(
                f"waiting for data takes {share:.0%} of a step: `nest-dist inspect-data` shows the "
                "slowest stage, and TrainingData.threads and .workers load more at a time"
            )

    def _draw_curves(self) -> None:
        """Draws all metrics so far; in the background, where reading them delays no step."""
        path = self._lines.with_name(CURVES)
        with records.tolerated(path):
            files.remove_leftovers(path)
            picture = pictures.encoded(curves.draw(records.lines(self._lines), self._split), True)
            files.write_durably(path, lambda new: new.write_bytes(picture))

    def _write(self, action: Callable[["writer.Events"], object]) -> None:
        """Writes to TensorBoard's file; after an error to another one, some time later.

        An event that was written in part hides all that follow it in its file.
        """
        waits = self._events is None and time.monotonic() < self._retry_at
        if self._workdir is None or waits:
            return
        # TensorBoard's library takes a second to load: the primary process alone pays for it.
        from nest_dist.telemetry import writer

        folder, events = self._workdir / EVENTS, self._events
        self._events, self._retry_at = None, time.monotonic() + FLUSH_SECONDS
        with records.tolerated(folder):
            events = events or writer.Events(folder)
            action(events)
            self._events = events


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
