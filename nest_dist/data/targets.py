"""The labels of a batch: the one class of each picture, or its set of classes."""

import dataclasses
import typing
from collections.abc import Collection

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, classes

# Of a class in the set of a picture: values of "labels".
ABSENT, PRESENT, UNKNOWN = 0, 1, 2


class Form(typing.Protocol):
    """How the labels of an example become a row of an array."""

    name: typing.ClassVar[str]  # of the array in a batch

    def empty(self, rows: int, num_classes: int) -> np.ndarray:
        """The array without any example."""

    def of(self, example: batch.Example, num_classes: int) -> int | np.ndarray:
        """The row of an example.

        Raises:
            BadInput: if its labels do not fit.
        """


@dataclasses.dataclass(frozen=True)
class OneClass:
    """ "label", int32 [B]: each picture has one class."""

    name: typing.ClassVar[str] = "label"

    def empty(self, rows: int, num_classes: int) -> np.ndarray:
        return np.zeros(rows, np.int32)

    def of(self, example: batch.Example, num_classes: int) -> int:
        if len(example["labels"]) != 1:
            raise failures.BadInput(
                f"{example.get('key', 'an example')} has {len(example['labels'])} classes, "
                "Classification takes pictures of one; leave it out or choose its class, or train "
                "with Step.objective = @MultiLabel()."
            )
        (label,) = classes.relabelled(example, range(num_classes))
        return label


@dataclasses.dataclass(frozen=True)
class ClassSets:
    """ "labels", uint8 [B, classes] of ABSENT, PRESENT and UNKNOWN: pictures of any classes."""

    name: typing.ClassVar[str] = "labels"

    def empty(self, rows: int, num_classes: int) -> np.ndarray:
        return np.full((rows, num_classes), ABSENT, np.uint8)

    def of(self, example: batch.Example, num_classes: int) -> np.ndarray:
        (row,) = self.empty(1, num_classes)
        row[list(classes.relabelled(example, range(num_classes), "unknown"))] = UNKNOWN
        row[list(classes.relabelled(example, range(num_classes)))] = PRESENT
        return row


@dataclasses.dataclass(frozen=True)
class NoLabels:
    """No array at all: pictures whose classes, if they have any, are not looked at."""

    name: typing.ClassVar[str] = ""

    def empty(self, rows: int, num_classes: int) -> np.ndarray:
        return np.zeros((rows, 0), np.uint8)

    def of(self, example: batch.Example, num_classes: int) -> np.ndarray:
        return np.zeros(0, np.uint8)


FORMS: tuple[Form, ...] = (OneClass(), ClassSets())


def form_of(needs: Collection[str]) -> Form:
    """The form whose array is among those that an objective needs."""
    return next((form for form in FORMS if form.name in needs), NoLabels())
