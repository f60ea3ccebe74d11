"""A batch from its rows: which examples they hold, decoded and transformed."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, sequences, targets
from nest_dist.data.sources import retries, traffic

# The array of a batch with the id of the corrupt example that a row replaces, or NOTHING.
REPLACED = "corrupt"
NOTHING = -1
FETCHED = "fetched"  # that with the counts of `traffic` since the last one [1, 4]
REPLACEMENTS = 100  # tried in turn before giving up
ROW_BYTES = 12  # of all arrays but images and labels


@dataclasses.dataclass(frozen=True)
class Steps:
    """The rows of this process in every batch, in one or several pieces: a sequence for Grain."""

    source: batch.Source
    order: sequences.Order
    # (example, seed, position, view) -> the image after each transform
    stages: Callable[[batch.Example, int, int, int], Iterable[np.ndarray]]
    spec: batch.ImageSpec  # of the last of them, with all views
    pieces: Sequence[np.ndarray]  # the rows of each
    limits: Sequence[int]  # bytes of row groups in memory, for each
    labels: targets.Form
    replace_corrupt: bool  # whether the next example takes the row of one that is corrupt
    # Ends what waits for storage
    closing: retries.Closing = dataclasses.field(default_factory=retries.Closing)

    @property
    def bytes(self) -> int:
        """Size of the largest piece of a batch."""
        labels = self.labels.empty(1, self.num_classes).nbytes
        return (math.prod(self.spec.shape) + ROW_BYTES + labels) * max(map(len, self.pieces))

    @property
    def num_classes(self) -> int:
        return len(self.source.class_names)

    def __len__(self) -> int:
        return self.order.steps() * len(self.pieces)

    def __getitem__(self, element: int) -> dict[str, np.ndarray]:
        step, piece = divmod(element, len(self.pieces))
        rows = self.pieces[piece]
        wanted = self.order.at(step, rows)
        positions = (step * self.order.global_batch + rows).tolist()
        images = np.empty((len(rows), *self.spec.shape), np.uint8)
        labels = self.labels.empty(len(rows), self.num_classes)
        corrupt = np.full(len(rows), NOTHING)
        held = self.source.holding(wanted.groups, wanted.ahead, self.limits[piece])
        with retries.until(self.closing), held:
            for row, example in enumerate(wanted.examples.tolist()):
                if example == sequences.PADDING:
                    images[row] = 0
                else:
                    images[row], labels[row], corrupt[row] = self._row(positions[row], example)
        arrays = {"image": images, REPLACED: corrupt, FETCHED: traffic.here.take()[None]}
        if self.labels.name:
            arrays[self.labels.name] = labels
        if self.order.seed is None:
            counts = (wanted.examples != sequences.PADDING) & (corrupt == NOTHING)
            arrays["weight"] = counts.astype(np.float32)
        return arrays

    def _row(self, position: int, number: int) -> tuple[np.ndarray, int | np.ndarray, int]:
        """Image and labels at a position, and the number of the example if it was corrupt."""
        for attempt in range(REPLACEMENTS):
            example = None
            try:
                example = retries.example(self.source, (number + attempt) % len(self.source))
                label = self.labels.of(example, self.num_classes)
                image = self._image(example, position)
            except batch.Corrupt as reason:
                if not self.replace_corrupt:
                    key = f" ({example['key']})" if example and "key" in example else ""
                    raise failures.BadInput(
                        f"example {number}{key} is corrupt: {reason}; repair or remove it, or set "
                        "TrainingData.max_corrupt_fraction and EvaluationData.max_corrupt_fraction "
                        "above 0 to replace corrupt examples."
                    ) from None
                continue
            if (image.shape, image.dtype) != (self.spec.shape, self.spec.dtype):
                raise failures.BadInput(
                    f"an image is {image.dtype} {list(image.shape)} where source and transforms "
                    f"declare {self.spec}; correct image_spec of the source or output of a "
                    "transform."
                )
            return image, label, number if attempt else NOTHING
        raise failures.BadInput(
            f"example {number} and the {REPLACEMENTS - 1} that follow are corrupt; make the data "
            "set anew."
        )

    def _image(self, example: batch.Example, position: int) -> np.ndarray:
        """The transformed image, or all views of it."""
        views = []
        for view in range(self.spec.views):
            *_, image = self.stages(example, self.order.seed or 0, position, view)
            views.append(image)
        return np.stack(views) if self.spec.views > 1 else image
