"""TensorBoard's file of events."""

import pathlib
import sys
import time
import typing
from collections.abc import Mapping

import numpy as np

from nest_dist.telemetry import pictures

# tensorboardX loads PyTorch where it is installed, for seconds; we give it none of its arrays.
_modules = typing.cast(dict[str, typing.Any], sys.modules)
_modules.setdefault("torch", None)
import tensorboardX  # noqa: E402
from tensorboardX import summary  # noqa: E402
from tensorboardX.proto import event_pb2, summary_pb2  # noqa: E402

if _modules["torch"] is None:
    del _modules["torch"]


class Events(tensorboardX.SummaryWriter):
    """Appends to a file of its own; an error of the disk is raised where an event is added."""

    def __init__(self, folder: pathlib.Path) -> None:
        # The default name has seconds only: a second file within one second would replace the
        # first one.
        super().__init__(str(folder), filename_suffix=f".{time.time_ns()}")
        # The library's own thread takes events from a queue. If a full disk ended that thread, the
        # run would wait for it forever. An event that is written by this thread fails here.
        writer = self.file_writer.event_writer
        writer.add_event = writer._ev_writer.write_event

    def discard_from(self, step: int) -> None:
        """Makes TensorBoard discard the earlier events from a step on."""
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.file_writer.add_event(event_pb2.Event(session_log=start), step)

    def add_run_hparams(self, values: Mapping[str, bool | float | str]) -> None:
        """Adds the values by which the HPARAMS tab compares runs, beside their scalars."""
        # add_hparams would make a second run beside this one. The first summary would fix the
        # values that the tab shows; without it, TensorBoard takes those of all runs.
        _, *summaries = summary.hparams(values, {})
        for of_run in summaries:
            self.file_writer.add_summary(of_run)

    def add_sheet(self, name: str, sheet: np.ndarray, lossless: bool, step: int) -> None:
        """Adds an image uint8 [H, W, 3] as PNG, or as JPEG."""
        H, W, _ = sheet.shape
        data = pictures.encoded(sheet, lossless)
        image = summary_pb2.Summary.Image(
            height=H, width=W, colorspace=3, encoded_image_string=data
        )
        value = summary_pb2.Summary.Value(tag=name, image=image)
        self.file_writer.add_summary(summary_pb2.Summary(value=[value]), step)
