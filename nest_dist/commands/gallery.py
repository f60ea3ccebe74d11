"""What a run shows of its examples."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from nest_dist.commands import wiring
from nest_dist.telemetry import pictures, report

# A class with less than this share of a mixed picture is not worth a word.
SMALLEST_SHARE = 0.005


class Gallery:
    """Pages of training and evaluation examples, which all processes make and the lead shows."""

    def __init__(self, wired: wiring.Wiring, shown: report.Report) -> None:
        """Compiles what brings a few examples to every process."""
        run = wired.run
        H, W = run.model.geometry().image_sides
        count = min(pictures.room(H, W), run.global_batch)
        self._classes = wired.training_source.class_names
        self._report = shown
        training, evaluating = wired.batch_shapes()
        step = jax.ShapeDtypeStruct((), np.int32)
        self._inputs = wired.shown_inputs(count).lower(step, training).compile()
        self._examples = wired.first_examples(count).lower(evaluating).compile()

    def training(
        self, batches: Iterator[wiring.DeviceBatch], steps_done: int
    ) -> Iterator[wiring.DeviceBatch]:
        """The batches as they come; the first is shown as the model sees it."""
        first = next(batches)
        images, shares = jax.device_get(self._inputs(np.int32(steps_done), first))
        captions = [pictures.Caption(self._mixture(row)) for row in shares]
        self._report.page("train/images", images, captions, steps_done + 1)
        yield first
        yield from batches

    def evaluation(
        self, step: int, batch: wiring.DeviceBatch, counted: Mapping[str, jax.Array]
    ) -> None:
        """Shows examples of an evaluation batch with their true and predicted classes."""
        found = jax.device_get(self._examples(batch))
        real = found["weight"] > 0
        if not real.any():
            return
        predicted = np.asarray(counted["predicted"])[: len(real)]
        captions = [
            pictures.Caption(
                (f"true: {self._classes[label]}", f"pred: {self._classes[guess]}"), label == guess
            )
            for label, guess in zip(found["label"][real], predicted[real], strict=True)
        ]
        self._report.page("eval/images", found["image"][real], captions, step)

    def _mixture(self, shares: np.ndarray) -> list[str]:
        """The classes of a picture, the largest share first: two lines."""
        largest = [index for index in np.argsort(-shares)[:2] if shares[index] >= SMALLEST_SHARE]
        if len(largest) < 2:
            return [*(self._classes[index] for index in largest), "", ""][:2]
        return [f"{shares[index]:.0%} {self._classes[index]}" for index in largest]
