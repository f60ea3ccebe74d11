"""Metrics for people: TensorBoard events and JSON lines, from the lead process only."""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tensorboardX
from tensorboardX import summary
from tensorboardX.proto import event_pb2, summary_pb2

from nest_dist.telemetry import desk, histograms, pictures

EVENTS = "tensorboard"
FLUSH_SECONDS = 30


class Writer:
    """Writes WORKDIR/tensorboard and WORKDIR/metrics.jsonl; after a resume no step stands twice."""

    def __init__(self, workdir: pathlib.Path, first_step: int) -> None:
        """Opens both for the steps after `first_step`; what a lost attempt wrote there is void."""
        self._path = workdir / desk.METRICS
        # By default a file is named by the second only; the later of two would replace the first.
        suffix = f".{time.time_ns()}"
        self._events = tensorboardX.SummaryWriter(str(workdir / EVENTS), filename_suffix=suffix)
        # The library's own thread takes events from a queue; were it to die of a full disk, the run
        # would wait for it without end. Written from here, an event fails here.
        events = self._events.file_writer.event_writer
        events.add_event = events._ev_writer.write_event
        self._flushed = time.monotonic()
        self._open(first_step)

    def rewind(self, step: int) -> None:
        """Goes on after `step`; what stands after it is void."""
        self._lines.close()
        self._open(step)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """One JSON line, and one TensorBoard scalar for each metric."""
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def text(self, name: str, text: str, step: int) -> None:
        """A text shown as it is."""
        self._events.add_text(name, "```\n" + text + "\n```", step)

    def hparams(self, values: Mapping[str, bool | float | str]) -> None:
        """What the HPARAMS tab compares runs by, beside their scalars."""
        # add_hparams would make a second run beside this one. The first part would fix which values
        # the tab shows; without it, TensorBoard takes those of all runs together.
        for part in summary.hparams(values, {})[1:]:
            self._events.file_writer.add_summary(part)

    def page(
        self, name: str, images: np.ndarray, captions: Sequence[pictures.Caption], step: int
    ) -> None:
        """Pictures uint8 [N, H, W, C] over their captions."""
        sheet = pictures.page(images, captions)
        H, W, _ = sheet.shape
        # Small pictures are shown pixel by pixel, photographs as photographs are.
        data = pictures.encoded(sheet, lossless=images.shape[1] < pictures.SMALLEST_SIDE)
        image = summary_pb2.Summary.Image(
            height=H, width=W, colorspace=3, encoded_image_string=data
        )
        value = summary_pb2.Summary.Value(tag=name, image=image)
        self._events.file_writer.add_summary(summary_pb2.Summary(value=[value]), step)

    def histogram(self, name: str, histogram: histograms.Histogram, step: int) -> None:
        """The distribution of many values."""
        self._events.add_histogram_raw(name, **histogram._asdict(), global_step=step)

    def evaluations(self) -> dict[int, dict[str, float]]:
        """Every evaluation on record, by step."""
        lines = map(json.loads, self._path.read_text(encoding="utf-8").splitlines())
        return {line["step"]: line for line in lines if "eval/top_1" in line}

    def flush(self) -> None:
        """Brings everything to disk."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes both."""
        self._lines.close()
        self._events.close()

    def _open(self, first_step: int) -> None:
        _forget_after(self._path, first_step)
        self._lines = self._path.open("a", encoding="utf-8")
        # TensorBoard drops what was written before at this step or later when it reads such a mark.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.file_writer.add_event(event_pb2.Event(session_log=start), first_step + 1)


def _forget_after(lines: pathlib.Path, step: int) -> None:
    if not lines.exists():
        return
    kept = []
    for line in lines.read_text(encoding="utf-8").splitlines(keepends=True):
        # A killed process may leave half a line at the end.
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    replacement = lines.with_suffix(".jsonl.new")
    replacement.write_text("".join(kept), encoding="utf-8")
    replacement.replace(lines)
