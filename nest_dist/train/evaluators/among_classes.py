"""Accuracy where only some classes can be right, as on ImageNet-A and ImageNet-R."""

import pathlib
import typing
from collections.abc import Mapping

import jax
import numpy as np

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.train import evaluators, ranks


@settings.register
class AmongClasses(evaluators.Measure):
    """Top-k accuracy among the logits of some classes: `among_top_1`.

    Examples of other classes are left out; `among_examples` is the number of the rest.

    Attributes:
        classes: their names, or a text file with one a line. None for those of the data set, as
            ImageNet-A and -R need: each has 200 of ImageNet's 1,000 classes.
        k: one or several.
    Source: arXiv 1907.07174, section 3; arXiv 2006.16241, section 3.
    """

    classes: tuple[str, ...] | str | None = None
    k: typing.Annotated[tuple[int, ...], Within(1)] = (1,)

    def metrics(self) -> tuple[str, ...]:
        return tuple(f"among_top_{k}" for k in self.k)

    def require_fit(self, classes: evaluators.Classes, examples: int, reference: int) -> None:
        among = self.labels(classes)
        if wrong := [k for k in self.k if k >= len(among)]:
            raise failures.BadInput(
                f"AmongClasses.k has {wrong[0]}, and AmongClasses.classes are {len(among)}, of "
                "which every label is among so many; give smaller numbers, or more classes."
            )

    def labels(self, classes: evaluators.Classes) -> np.ndarray:
        """The labels of the classes, ascending."""
        names = classes.own if self.classes is None else self.classes
        if isinstance(names, str):
            try:
                text = pathlib.Path(names).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise failures.BadInput(
                    f"AmongClasses.classes is {names!r}, which cannot be read "
                    f"({failures.cause(error)}); give a text file with one class name a line, or "
                    "a tuple of names."
                ) from None
            names = tuple(line.strip() for line in text.splitlines() if line.strip())
        label_of = {name: label for label, name in enumerate(classes.names)}
        if unknown := [name for name in names if name not in label_of]:
            raise failures.BadInput(
                f"AmongClasses.classes has {unknown[0]!r}, which is none of the "
                f"{len(label_of)} classes of the model, as {classes.names[0]!r}; give names as "
                "the model has them."
            )
        return np.unique([label_of[name] for name in names]).astype(np.int32)

    def observe(
        self, seen: evaluators.Seen, labels: jax.Array, classes: evaluators.Classes
    ) -> Mapping[str, jax.Array]:
        return {"rank_among": ranks.of_label(seen.outputs, labels, self.labels(classes))}

    def conclude(self, gathered: evaluators.Gathered) -> evaluators.Finding:
        counted = np.isin(gathered.examples.labels, self.labels(gathered.classes))
        rank = gathered.examples.arrays["rank_among"][counted]
        metrics = {f"among_top_{k}": evaluators.accuracy(rank <= k) for k in self.k}
        return evaluators.Finding({**metrics, "among_examples": float(counted.sum())})
