"""The Grain chain: the global batch of a step as a pure function of configuration, seed and step.

`index` says which example is in which row. Random numbers are keyed by the seed and the position of
the row. So a process reads the rows of its own devices alone, and a run resumes at any step.
Neither the number of processes, workers or threads nor any earlier step changes a batch.
"""

import dataclasses
import itertools
import logging
import typing
from collections.abc import Iterator

import grain
import numpy as np

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.data import batch, drawing, sequences, steps, targets
from nest_dist.data import workers as loading
from nest_dist.data.sources import retries, traffic

READ_AHEAD_BYTES = 1 << 30


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
    source: batch.SourceConfig = means(Effect.NONE)
    transforms: tuple[batch.Transform, ...]
    threads: typing.Annotated[int, Within(1, 1024)] = means(Effect.NONE, default=2)
    workers: typing.Annotated[int, Within(0, 1024)] = means(Effect.NONE, default=0)
    read_ahead_bytes: typing.Annotated[int, Within(1)] = means(
        Effect.NONE, default=READ_AHEAD_BYTES
    )
    max_corrupt_fraction: typing.Annotated[float, Within(0, 1)] = means(Effect.CHANGES, default=0.0)

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
            seed: in [0, 2**32), of endless, shuffled batches; None for each example once.
            first_step: in [0, 2**40).
        Raises:
            BadInput: if the data set is smaller than one batch for training, the memory does not
                suffice, or the virtual shards do not fit the batch.
        """
        plan, pool = self._plan(source, global_batch, rows, seed, labels)
        for remark in plan.order.remarks(rows):
            logging.getLogger(__name__).warning("%s: %s", self._name, remark)
        dataset = grain.MapDataset.source(plan)[first_step * len(plan.pieces) :]
        loaded = pool.batches(dataset, plan.bytes, len(plan.pieces), plan.closing)
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
    ) -> tuple[steps.Steps, loading.WorkerPool]:
        if seed is not None:
            require_batch(source, global_batch)
        order = self.order(source, global_batch, seed)
        pieces = order.pieces(rows, max(1, self.workers))
        limits = [order.bytes_in_hand(piece) for piece in pieces]
        spec = self.specs(source)[-1]
        plan = steps.Steps(
            source=source,
            order=order,
            stages=self.stages,
            spec=spec,
            pieces=pieces,
            limits=limits,
            labels=labels,
            replace_corrupt=self.max_corrupt_fraction > 0,
        )
        workers = min(self.workers, len(pieces)) if sum(limits) else self.workers
        pool = loading.WorkerPool(
            self._name, self.threads, workers, self.read_ahead_bytes, sum(limits)
        )
        pool.depths(plan.bytes)
        return plan, pool

    def _counted(self, loaded: loading.Loaded, examples: int) -> Iterator[loading.Arrays]:
        """Batches alone; the number of replaced examples is kept within the limit."""
        allowed, skipped = self.max_corrupt_fraction * examples, set[int]()
        for arrays in loaded:
            traffic.tell(arrays.pop(steps.FETCHED).sum(0))
            corrupt = arrays.pop(steps.REPLACED)
            for example in sorted({*corrupt[corrupt != steps.NOTHING].tolist()} - skipped):
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
    views: typing.Annotated[int, Within(1, 2)] = means(Effect.ANOTHER_RUN, in_step=True, default=1)

    def specs(self, source: batch.Source) -> list[batch.ImageSpec]:
        """As of `SplitData`; the last stage has all views."""
        *stages, last = super().specs(source)
        return [*stages, dataclasses.replace(last, views=self.views)]

    def order(self, source: batch.Source, global_batch: int, seed: int | None) -> sequences.Order:
        phases = getattr(self.source, "phases", ())  # of a mixture
        group_bytes = sum(source.row_groups.bytes) if source.row_groups else 0
        if self.balanced and group_bytes > self.read_ahead_bytes:
            raise failures.BadInput(
                f"TrainingData.balanced draws from all row groups at once, of {group_bytes} bytes; "
                f"TrainingData.read_ahead_bytes is {self.read_ahead_bytes}. Raise it, or make "
                "records of them by `nest-dist prepare`."
            )
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
