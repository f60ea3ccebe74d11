"""Accuracy by class, and which classes are taken for which."""

import typing
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from nest_dist.base import settings
from nest_dist.train import evaluators
from nest_dist.train.objectives import classification

NOTHING = "NaN"  # stands for the class that was predicted where a logit is NaN


@settings.register
class Confusion(evaluators.Measure):
    """Accuracy by class; tables and pictures tell which classes are taken for which.

    `mean_class_accuracy` is the mean over the classes that have examples, `least_class_accuracy`
    the lowest of them.
    """

    def metrics(self) -> tuple[str, ...]:
        return "mean_class_accuracy", "least_class_accuracy"

    def observe(
        self, seen: evaluators.Seen, labels: jax.Array, classes: evaluators.Classes
    ) -> Mapping[str, jax.Array]:
        return {"predicted": classification.predicted(seen.outputs)}

    def conclude(self, gathered: evaluators.Gathered) -> evaluators.Finding:
        predicted = gathered.examples.arrays["predicted"]
        confused = evaluators.Confused(gathered.examples.ids, gathered.examples.labels, predicted)
        shares = [it.accuracy for it in by_class(confused, gathered.classes.names) if it.examples]
        metrics = {
            "mean_class_accuracy": float(np.mean(shares)) if shares else 0.0,
            "least_class_accuracy": min(shares, default=0.0),
        }
        return evaluators.Finding(metrics, confused=confused)


class ClassAccuracy(typing.NamedTuple):
    """One class: its examples, and how many of them were recognised."""

    name: str
    examples: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share that was recognised; 0 of a class without examples."""
        return self.right / max(self.examples, 1)


class Pair(typing.NamedTuple):
    """So many `times` an example of the class `label` was taken for the class `predicted`."""

    label: int
    predicted: int
    times: int


def by_class(confused: evaluators.Confused, names: Sequence[str]) -> list[ClassAccuracy]:
    """Every class in the order of its label."""
    count = np.bincount(confused.labels, minlength=len(names))
    right = confused.labels[confused.labels == confused.predicted]
    rights = np.bincount(right, minlength=len(names))
    return [ClassAccuracy(*row) for row in zip(names, count.tolist(), rights.tolist(), strict=True)]


def pairs(confused: evaluators.Confused) -> list[Pair]:
    """All pairs that occur, the right ones too: by count, the largest first, then by label."""
    both = np.stack([confused.labels, confused.predicted], axis=1)
    found, counts = np.unique(both.reshape(-1, 2), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [Pair(int(found[at, 0]), int(found[at, 1]), int(counts[at])) for at in order]


def wrong_pairs(confused: evaluators.Confused) -> list[Pair]:
    """The pairs of two classes, the most frequent first."""
    return [pair for pair in pairs(confused) if pair.label != pair.predicted]


def matrix(confused: evaluators.Confused, labels: Sequence[int]) -> np.ndarray:
    """Counts [n + 1, n + 1] of some labels; the last row and column stand for all others."""
    n = len(labels)
    position = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((n + 1, n + 1), np.int64)
    for pair in pairs(confused):
        counts[position.get(pair.label, n), position.get(pair.predicted, n)] += pair.times
    return counts


def class_name(label: int, names: Sequence[str]) -> str:
    """Of a predicted label."""
    return NOTHING if label == classification.NO_CLASS else names[label]


def table(confused: evaluators.Confused, names: Sequence[str], most: int) -> str:
    """The classes with the lowest accuracy and the most frequent confusions, `most` of each."""
    rows = sorted(
        (it for it in by_class(confused, names) if it.examples), key=lambda it: it.accuracy
    )
    missing = len(names) - len(rows)
    wrong = wrong_pairs(confused)
    lines = [f"accuracy by class, the lowest first ({min(most, len(rows))} of {len(rows)})"]
    lines += [
        f"  {it.accuracy:8.2%}  {it.right:,}/{it.examples:,}  {it.name}" for it in rows[:most]
    ]
    lines += [f"  {missing} classes have no examples"] * bool(missing)
    lines += [f"most confused pairs ({min(most, len(wrong))} of {len(wrong)})"]
    for pair in wrong[:most]:
        taken = class_name(pair.predicted, names)
        lines.append(f"  {pair.times:8,}  {names[pair.label]} taken for {taken}")
    return "\n".join(lines)


def rows_by_class(confused: evaluators.Confused, names: Sequence[str]) -> list[Sequence[object]]:
    """A table of all classes, titles first."""
    rows: list[Sequence[object]] = [("class", "examples", "right", "accuracy")]
    for it in by_class(confused, names):
        rows.append((it.name, it.examples, it.right, it.accuracy if it.examples else ""))
    return rows


def rows_of_pairs(confused: evaluators.Confused, names: Sequence[str]) -> list[Sequence[object]]:
    """The confusion matrix as a table: one row for each pair that occurs, titles first."""
    rows: list[Sequence[object]] = [("class", "predicted", "count")]
    for pair in sorted(pairs(confused)):
        rows.append((names[pair.label], class_name(pair.predicted, names), pair.times))
    return rows
