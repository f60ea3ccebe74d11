"""The voice of a run: everything people see goes through here, and only the lead speaks."""

import pathlib
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from nest_dist.telemetry import goodput, histograms, pictures, vitals

if typing.TYPE_CHECKING:
    from nest_dist.telemetry import progress, writer


class Report:
    """Metrics to TensorBoard, JSON lines and the terminal; on the other processes, silence."""

    def __init__(
        self,
        workdir: pathlib.Path | None,
        first_step: int,
        num_steps: int,
        steps_per_epoch: float,
        flops_per_image: float,
    ) -> None:
        """Opens everything in `workdir`; without one nothing is ever shown."""
        self._writer: writer.Writer | None = None
        self._progress: progress.Progress | None = None
        self._flops_per_image = flops_per_image
        if workdir is not None:
            # TensorBoard's library takes seconds to load: the lead process alone pays for it.
            from nest_dist.telemetry.progress import Progress
            from nest_dist.telemetry.writer import Writer

            self._writer = Writer(workdir, first_step)
            self._progress = Progress(first_step, num_steps, steps_per_epoch)

    def metrics(self, step: int, metrics: Mapping[str, float | np.ndarray]) -> None:
        """Records and shows metrics of a step; arrays are histograms."""
        if self._writer is None:
            return
        scalars = {}
        for name, value in metrics.items():
            if not isinstance(value, np.ndarray):
                scalars[name] = value
            elif found := histograms.read(value):
                self._writer.histogram(name, found, step)
        if "speed/images_per_second" in scalars:
            scalars |= vitals.beside(scalars, self._flops_per_image)
        self._writer.scalars(step, scalars)
        self.say_metrics(step, scalars)

    def say_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows metrics without recording them."""
        if self._progress is not None:
            self._progress.report(step, metrics)

    def say(self, text: str) -> None:
        """Shows a line."""
        if self._progress is not None:
            self._progress.say(text)

    def text(self, name: str, text: str, step: int) -> None:
        """Records a text."""
        if self._writer is not None:
            self._writer.text(name, text, step)

    def hparams(self, values: Mapping[str, bool | float | str]) -> None:
        """Records what tells this run from others, to compare their outcomes by."""
        if self._writer is not None:
            self._writer.hparams(values)

    def page(
        self, name: str, images: np.ndarray, captions: Sequence[pictures.Caption], step: int
    ) -> None:
        """Records pictures uint8 [N, H, W, C] over their captions."""
        if self._writer is not None:
            self._writer.page(name, images, captions, step)

    def rewind(self, step: int) -> None:
        """What was recorded after `step` is void; the run goes on from there."""
        if self._writer is not None:
            self._writer.rewind(step)

    def summary(self, num_steps: int, global_batch: int, ledger: goodput.Ledger) -> None:
        """Says what came of a finished run, and where its time went."""
        if self._writer is None:
            return
        self.say(f"done: {num_steps} steps, {num_steps * global_batch:,} examples")
        evaluations = self._writer.evaluations()
        best = max(evaluations, key=lambda step: evaluations[step]["eval/top_1"])
        last = max(evaluations)
        self.say(
            f"test top-1: best {evaluations[best]['eval/top_1']:.2%} at step {best}, "
            f"last {evaluations[last]['eval/top_1']:.2%} at step {last}"
        )
        spent = (
            f"{cause.replace('_', ' ')} {_duration(seconds)}"
            for cause, seconds in ledger.seconds.items()
        )
        total = _duration(sum(ledger.seconds.values()))
        self.say(f"time: {total} over all attempts: {', '.join(spent)}")

    def flush(self) -> None:
        """Brings what was recorded to disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._progress is not None:
            self._progress.close()
        if self._writer is not None:
            self._writer.close()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
