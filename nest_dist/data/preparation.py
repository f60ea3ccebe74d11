"""Examples made ready: read, decoded, transformed, stacked; what happens to unreadable ones."""

import dataclasses
import logging
import typing
from collections.abc import Iterable, Iterator

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, crop, decode

# The field of a prepared example that names the unreadable one which it stands for, or NONE.
UNREADABLE = "unreadable"
NONE = -1
REPLACEMENTS = 100  # tried in turn before giving up


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Decodes and transforms; all chance is keyed by the seed and the position in the run.

    Attributes:
        transforms: applied to each image in turn.
        seed: of the run.
        classes: how many labels there are.
    """

    transforms: tuple[batch.Transform, ...]
    seed: int
    classes: int

    def __call__(self, example: batch.Example, position: int) -> batch.Example:
        """The example at a position of the endless sequence.

        Raises:
            Unreadable: if the picture cannot be decoded.
            BadInput: if its label is out of range.
        """
        label = int(example["label"])
        if not 0 <= label < self.classes:
            raise failures.BadInput(
                f"{example.get('key', 'an example')} has label {label}, the data has "
                f"{self.classes} classes, labels 0 to {self.classes - 1}; correct the label or "
                "name every class."
            )
        picture, transforms, rng = example["image"], self.transforms, self._chance(position)
        if transforms and isinstance(transforms[0], crop.RandomResizedCrop):
            image, transforms = transforms[0].decoded(picture, rng), transforms[1:]
        else:
            image = decode.pixels(picture)
        for transform in transforms:
            image = transform(image, rng)
        return {"image": np.ascontiguousarray(image), "label": np.int32(label)}

    def stages(self, example: batch.Example, position: int) -> Iterator[np.ndarray]:
        """The whole picture decoded, and the image after each transform, the last one as above.

        Raises:
            Unreadable: if the picture cannot be decoded.
        """
        image = decode.pixels(example["image"])
        yield image
        rng = self._chance(position)
        for transform in self.transforms:
            image = transform(image, rng)
            yield image

    def _chance(self, position: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, position]))


@dataclasses.dataclass(frozen=True)
class Indexed:
    """Prepares examples of a source by index.

    Attributes:
        source: where they are.
        preparation: what is done to them.
        replace: whether an unreadable example is replaced by the next readable one.
    """

    source: batch.Source
    preparation: Preparation
    replace: bool

    def __call__(self, position: int, index: int) -> batch.Example:
        """The example with an index of the source, at a position of the run.

        Raises:
            BadInput: if it is unreadable and not to be replaced.
        """
        index = int(index)
        for attempt in range(REPLACEMENTS):
            found: batch.Example = {}
            try:
                found = self.source[(index + attempt) % len(self.source)]
                prepared = self.preparation(found, position)
            except batch.Unreadable as reason:
                if not self.replace:
                    raise failures.BadInput(refusal(index, found, reason)) from None
                continue
            return {**prepared, UNREADABLE: np.int64(index if attempt else NONE)}
        raise failures.BadInput(
            f"example {index} and the {REPLACEMENTS - 1} that follow are unreadable; the data set "
            "is damaged, make it anew."
        )


def refusal(index: int, example: batch.Example, reason: Exception) -> str:
    """Why a run stops at an unreadable example."""
    key = f" ({example['key']})" if "key" in example else ""
    return (
        f"example {index}{key} is unreadable: {reason}; repair or remove it, or set "
        "TrainingData.unreadable_share and EvaluationData.unreadable_share above 0 to replace such."
    )


def stacked(examples: Iterable[batch.Example], count: int) -> dict[str, np.ndarray]:
    """A batch of prepared examples, each laid into it as soon as it is made.

    Args:
        examples: with the same names.
        count: how many.
    Raises:
        BadInput: if they differ in shape or type.
    """
    whole: dict[str, np.ndarray] = {}
    for row, example in zip(range(count), examples, strict=True):
        if not row:
            whole = {name: np.empty((count, *x.shape), x.dtype) for name, x in example.items()}
        assert example.keys() == whole.keys()
        for name, value in example.items():
            if (value.shape, value.dtype) != (whole[name].shape[1:], whole[name].dtype):
                raise failures.BadInput(
                    f"of the {name}s of a batch one is {value.dtype} {value.shape}, the first is "
                    f"{whole[name].dtype} {whole[name].shape[1:]}; begin the transforms with one "
                    "that makes them the same, such as RandomResizedCrop for training and "
                    "ResizedCentreCrop for evaluation."
                )
            whole[name][row] = value
    return whole


class Counted:
    """Batches without the mark of replaced examples, whose share is kept within its limit."""

    def __init__(self, batches: typing.Any, examples: int, share: float, name: str) -> None:
        """Wraps an iterator of batches.

        Args:
            batches: arrays by name, with `UNREADABLE`.
            examples: in the split.
            share: of them that may be unreadable among those that this process meets, in [0, 1].
            name: of the configuration, for the text of errors.
        """
        self._batches = batches
        self._allowed = share * examples
        self._examples = examples
        self._share = share
        self._name = name
        self._seen: set[int] = set()

    def __iter__(self) -> Iterator[batch.Batch]:
        return self

    def __next__(self) -> batch.Batch:
        found = dict(next(self._batches))
        unreadable = found.pop(UNREADABLE)
        for index in unreadable[unreadable != NONE]:
            self._count(int(index))
        return found

    def positions(self) -> batch.Positions:
        """As of the wrapped iterator."""
        read = getattr(self._batches, "positions", None)
        return read() if read else {}

    def close(self) -> None:
        """Closes the wrapped iterator."""
        self._batches.close()

    def _count(self, index: int) -> None:
        if index in self._seen:
            return
        self._seen.add(index)
        logging.getLogger(__name__).warning(
            "example %d is unreadable and was replaced; %d so far", index, len(self._seen)
        )
        if len(self._seen) > self._allowed:
            raise failures.BadInput(
                f"{len(self._seen)} unreadable examples were met, {self._name}.unreadable_share is "
                f"{self._share}, which allows {int(self._allowed)} of {self._examples}; repair the "
                "data set or raise the share."
            )
