"""Metrics for people: TensorBoard events and JSON lines, from the lead process only."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorboardX


class Writer:
    """Writes WORKDIR/tensorboard and WORKDIR/metrics.jsonl; after a resume no step stands twice."""

    def __init__(self, workdir: pathlib.Path, first_step: int) -> None:
        """Opens both for the steps after `first_step`; what a lost attempt wrote there is void."""
        lines = workdir / "metrics.jsonl"
        _forget_after(lines, first_step)
        self._lines = lines.open("a", encoding="utf-8")
        purge = first_step + 1 if first_step else None
        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=purge, flush_secs=30
        )

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """One JSON line, and one TensorBoard scalar for each metric."""
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """A text shown as it is."""
        self._events.add_text(name, "```\n" + text + "\n```", step)

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """One grid of uint8 images [N, H, W, C], as square as N allows."""
        self._events.add_image(name, grid(images), step, dataformats="HWC")

    def flush(self) -> None:
        """Brings everything to disk."""
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        self._lines.close()
        self._events.close()


def grid(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """uint8 images [N, H, W, C] side by side with grey lines between: uint8 [H', W', 3]."""
    N, H, W, _ = images.shape
    columns = int(np.ceil(np.sqrt(N)))
    rows = -(-N // columns)
    page = np.full((rows * (H + gap) + gap, columns * (W + gap) + gap, 3), 128, np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (H + gap)
        left = gap + index % columns * (W + gap)
        page[top : top + H, left : left + W] = np.broadcast_to(image, (H, W, 3))
    return page


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
