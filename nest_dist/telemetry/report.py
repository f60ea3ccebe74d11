"""The voice of a run: everything people see goes through here, and only the lead speaks."""

import pathlib
import typing
from collections.abc import Mapping

import numpy as np

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
    ) -> None:
        """Opens everything in `workdir`; without one nothing is ever shown."""
        self._writer: writer.Writer | None = None
        self._progress: progress.Progress | None = None
        if workdir is not None:
            # TensorBoard's library takes seconds to load: the lead process alone pays for it.
            from nest_dist.telemetry.progress import Progress
            from nest_dist.telemetry.writer import Writer

            self._writer = Writer(workdir, first_step)
            self._progress = Progress(first_step, num_steps, steps_per_epoch)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records and shows metrics of a step."""
        if self._writer is not None:
            self._writer.scalars(step, metrics)
        self.say_metrics(step, metrics)

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

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Records a grid of uint8 images [N, H, W, C]."""
        if self._writer is not None:
            self._writer.images(name, images, step)

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
