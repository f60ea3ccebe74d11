"""The Grain chain: the global batch of a step as a pure function of configuration, seed and step.

`index` says which example is in which row. Random numbers are keyed by the seed and the position of
the row. So a process reads the rows of its own devices alone, and a run resumes at any step.
Neither the number of processes, workers or threads nor any earlier step changes a batch.
"""

import dataclasses
import itertools
import logging
import math
import typing
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.data import batch, drawing, sequences, targets
from nest_dist.data import workers as loading
from nest_dist.data.sources import retries

READ_AHEAD_BYTES = 1 << 30
# The array of a batch with the id of the corrupt example that a row replaces, or NOTHING.
REPLACED = "corrupt"
NOTHING = -1
REPLACEMENTS = 100  # tried in turn before giving up
ROW_BYTES = 12  # of all arrays but images and labels
_SPEED_ONLY = means(Effect.NONE)


def require_batch(source: batch.Source, global_batch: int) -> None:
    """Refuses a training split that is smaller than one batch."""
    if len(source) < global_batch:
        raise failures.BadInput(
            f"the training split has {len(source)} examples, fewer than one batch of "
            f"{global_batch}; lower Run.global_batch."
        )


@settings.frozen
class SplitData:
    """A split of a data set and the way to its batches, for training and for evaluation alike.

    Attributes:
        source: the split.
        transforms: applied to each image in turn.
        threads: that transform examples, in each process or in each of its workers.
        workers: processes that load batches for each process; 0 uses threads only.
        read_ahead_bytes: memory of waiting batches, of each process and its workers together.
        max_corrupt_fraction: of the examples that may be corrupt; 0 stops at the first.
    """

    # Its fingerprint says whether a run goes on with the same data.
    source: batch.SourceConfig = dataclasses.field(metadata=means(Effect.NONE))
    transforms: tuple[batch.Transform, ...]
    threads: typing.Annotated[int, Within(1)] = dataclasses.field(default=2, metadata=_SPEED_ONLY)
    workers: typing.Annotated[int, Within(0)] = dataclasses.field(default=0, metadata=_SPEED_ONLY)
    read_ahead_bytes: typing.Annotated[int, Within(1)] = dataclasses.field(
        default=READ_AHEAD_BYTES, metadata=_SPEED_ONLY
    )
    max_corrupt_fraction: typing.Annotated[float, Within(0, 1)] = dataclasses.field(
        default=0.0, metadata=means(Effect.CHANGES)
    )

    @property
    def _name(self) -> str:
        return type(self).__name__

    def specs(self, source: batch.Source) -> list[batch.ImageSpec]:
        """Shape and type of the stored pictures, then of the images after each transform.

        Raises:
            BadInput: if the images cannot be joined to a batch.
        """
        stages = [source.image_spec]
        for transform in self.transforms:
            if stages[1:] and stages[-1].dtype == "encoded":
                break
            stages.append(transform.output(stages[-1]))
        last, names = stages[-1], ["", *(f"{type(each).__name__}: " for each in self.transforms)]
        if last.dtype != "uint8" or last.height is None or last.width is None:
            raise failures.BadInput(
                f"{self._name}.transforms end in {last}, a batch takes uint8 images of one size "
                f"({' -> '.join(map('{}{}'.format, names, stages))}); begin them with one that "
                "decodes and resizes, such as RandomResizedCrop for training and ResizedCentreCrop "
                "for evaluation."
            )
        return stages

    def stages(
        self, example: batch.Example, seed: int, position: int, view: int = 0
    ) -> Iterator[np.ndarray]:
        """The picture as it is stored, then the image after each transform.

        Args:
            example: of the source.
            seed: of the run.
            position: of the example in the endless sequence.
            view: of the picture, each with random numbers of its own.
        Raises:
            Corrupt: if the picture cannot be decoded.
        """
        image = typing.cast(np.ndarray, example["image"])  # `specs` has checked what is encoded
        yield image
        # The view is the highest word of the counter, which no view of a picture counts up to.
        bits = np.random.Philox(key=[seed, position], counter=[0, 0, 0, view])
        rng = np.random.Generator(bits)
        for transform in self.transforms:
            image = transform(image, rng)
            yield image

    def batches(
        self,
        source: batch.Source,
        *,
        global_batch: int,
        rows: np.ndarray,
        seed: int | None = None,
        first_step: int = 0,
        labels: targets.Form = targets.FORMS[0],
    ) -> batch.Batches:
        """This process's rows of the global batches of `first_step` and all later steps.

        Args:
            source: `self.source`, opened.
            global_batch: rows over all processes.
            rows: of this process's devices.
            seed: in [0, 2**32), of endless, shuffled batches; None for each example once.
            first_step: in [0, 2**40).
            labels: their form in the batches.
        Raises:
            BadInput: if the data set is smaller than one batch for training, the memory does not
                suffice, or the virtual shards do not fit the batch.
        """
        steps, pool = self._plan(source, global_batch, rows, seed, labels)
        for remark in steps.order.remarks(rows):
            logging.getLogger(__name__).warning("%s: %s", self._name, remark)
        dataset = grain.MapDataset.source(steps)[first_step * len(steps.pieces) :]
        loaded = pool.batches(dataset, steps.bytes, len(steps.pieces), steps.closing)
        return loading.Loaded(self._counted(loaded, len(source)), loaded.close)

    def order(self, source: batch.Source, global_batch: int, seed: int | None) -> sequences.Order:
        """The order of the examples of the opened source; its arguments are those of `batches`."""
        return drawing.order(source, global_batch, seed)

    def require_fit(
        self,
        source: batch.Source,
        global_batch: int,
        rows: np.ndarray,
        seed: int | None = None,
        labels: targets.Form = targets.FORMS[0],
    ) -> None:
        """Checks before anything is read that `batches` can be made."""
        self._plan(source, global_batch, rows, seed, labels)

    def _plan(
        self,
        source: batch.Source,
        global_batch: int,
        rows: np.ndarray,
        seed: int | None,
        labels: targets.Form,
    ) -> tuple["_Steps", loading.WorkerPool]:
        if seed is not None:
            require_batch(source, global_batch)
        order = self.order(source, global_batch, seed)
        pieces = order.pieces(rows, max(1, self.workers))
        limits = [order.bytes_in_hand(piece) for piece in pieces]
        spec = self.specs(source)[-1]
        steps = _Steps(self, source, order, spec, pieces, limits, labels)
        workers = min(self.workers, len(pieces)) if sum(limits) else self.workers
        pool = loading.WorkerPool(
            self._name, self.threads, workers, self.read_ahead_bytes, sum(limits)
        )
        pool.depths(steps.bytes)
        return steps, pool

    def _counted(self, loaded: loading.Loaded, examples: int) -> Iterator[loading.Arrays]:
        """Batches without the ids of replaced examples, whose number is kept within the limit."""
        allowed, skipped = self.max_corrupt_fraction * examples, set[int]()
        for arrays in loaded:
            corrupt = arrays.pop(REPLACED)
            for example in sorted({*corrupt[corrupt != NOTHING].tolist()} - skipped):
                skipped.add(example)
                logging.getLogger(__name__).warning(
                    "example %d is corrupt and was replaced; %d so far", example, len(skipped)
                )
            if len(skipped) > allowed:
                raise failures.BadInput(
                    f"{len(skipped)} corrupt examples were read, "
                    f"{self._name}.max_corrupt_fraction is {self.max_corrupt_fraction}, which "
                    f"allows {int(allowed)} of {examples}; repair the data set or raise the "
                    "fraction."
                )
            yield arrays


@settings.register
class TrainingData(SplitData):
    """Batches for training: shuffled anew each epoch, without end; others replace corrupt ones.

    Attributes:
        balanced: whether each class is drawn as often as any other, whatever its examples. Of a
            class with n, each is drawn once in n draws of the class. An epoch stays as long.
        repeats: rows of a batch with the same example and other random numbers. An epoch has as
            many rows as ever, and so a part of the examples, in turn.
        views: images of each picture, made by the same transforms with other random numbers.
    """

    balanced: bool = False
    repeats: typing.Annotated[int, Within(1)] = 1
    views: typing.Annotated[int, Within(1, 2)] = dataclasses.field(
        default=1, metadata=means(Effect.ANOTHER_RUN, in_step=True)
    )

    def specs(self, source: batch.Source) -> list[batch.ImageSpec]:
        """As of `SplitData`; the last stage has all views."""
        *stages, last = super().specs(source)
        return [*stages, dataclasses.replace(last, views=self.views)]

    def order(self, source: batch.Source, global_batch: int, seed: int | None) -> sequences.Order:
        phases = getattr(self.source, "phases", ())  # of a mixture
        return drawing.order(
            source,
            global_batch,
            seed,
            phases=phases,
            balanced=self.balanced,
            repeats=self.repeats,
        )

    def examples(
        self, source: batch.Source, *, seed: int, global_batch: int, step: int
    ) -> Iterator[batch.Example]:
        """The stored examples of the batch after `step` steps and of all later ones."""
        for later in itertools.count(step):
            ids = self.example_ids(source, seed=seed, global_batch=global_batch, step=later)
            for example_id in ids:
                yield retries.example(source, int(example_id))

    def example_ids(
        self, source: batch.Source, *, seed: int, global_batch: int, step: int
    ) -> np.ndarray:
        """The ids [B] of the examples in the batch after `step` steps."""
        order = self.order(source, global_batch, seed)
        return order.at(step, np.arange(global_batch)).examples


@settings.register
class EvaluationData(SplitData):
    """Batches for evaluation: each example once, in order, under a fixed generator.

    Corrupt examples and the padding of the last batch have weight 0.
    """


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The rows of this process in every batch, in one or several pieces."""

    data: SplitData
    source: batch.Source
    order: sequences.Order
    spec: batch.ImageSpec
    pieces: Sequence[np.ndarray]  # the rows of each
    limits: Sequence[int]  # bytes of row groups in memory, for each
    labels: targets.Form
    closing: retries.Closing = dataclasses.field(default_factory=retries.Closing)

    @property
    def bytes(self) -> int:
        """Size of the largest piece of a batch."""
        labels = self.labels.empty(1, self.num_classes).nbytes
        return (math.prod(self.spec.shape) + ROW_BYTES + labels) * max(map(len, self.pieces))

    @property
    def num_classes(self) -> int:
        """Of the source."""
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
        arrays = {"image": images, REPLACED: corrupt}
        if self.labels.name:
            arrays[self.labels.name] = labels
        if self.order.seed is None:
            counts = (wanted.examples != sequences.PADDING) & (corrupt == NOTHING)
            arrays["weight"] = counts.astype(np.float32)
        return arrays

    def _row(self, position: int, number: int) -> tuple[np.ndarray, int | np.ndarray, int]:
        """Image and labels at a position, and the number of the example if it was corrupt.

        Raises:
            BadInput: if the example is corrupt and may not be replaced, or does not fit the data.
        """
        for attempt in range(REPLACEMENTS):
            example = None
            try:
                example = retries.example(self.source, (number + attempt) % len(self.source))
                label = self.labels.of(example, self.num_classes)
                image = self._image(example, position)
            except batch.Corrupt as reason:
                if not self.data.max_corrupt_fraction:
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
            *_, image = self.data.stages(example, self.order.seed or 0, position, view)
            views.append(image)
        return np.stack(views) if self.spec.views > 1 else image
