"""Accuracy against sets of right labels, as ReaL has them for ImageNet."""

import pathlib
import typing
from collections.abc import Mapping

import jax
import numpy as np

from nest_dist.base import failures, files, settings
from nest_dist.train import evaluators
from nest_dist.train.objectives import classification


@settings.register
class RightLabels(evaluators.Measure):
    """The share of examples whose predicted class is one of several right ones: `right_labels`.

    Examples without a right label are left out; `right_labels_examples` is the number of the rest.
    `right_labels_agreement` is the share of them whose own label is right too, about 0.9 for ReaL:
    far less means that file and data set have their examples in another order.

    Attributes:
        file: JSON: a list with one list for each example, in the order of the data set, of numbers
            or names of the data set's classes.
    Source: arXiv 2006.07159, section 4; its file is real.json.
    """

    file: str

    def metrics(self) -> tuple[str, ...]:
        return ("right_labels",)

    def require_fit(self, classes: evaluators.Classes, examples: int, reference: int) -> None:
        self.sets(classes, examples)

    def sets(self, classes: evaluators.Classes, examples: int) -> list[frozenset[int]]:
        """The right labels of each example, by its id.

        Raises:
            BadInput: if the file is no such list, or of other examples or classes.
        """
        label_of: dict[int | str, int] = {name: it for it, name in enumerate(classes.names)}
        label_of |= {number: label_of[name] for number, name in enumerate(classes.own)}
        lists = self._lists()
        if len(lists) != examples:
            raise failures.BadInput(
                f"RightLabels.file {self.file} has {len(lists):,} lists, the data set "
                f"{examples:,} examples; give the file of this data set."
            )
        for number, labels in enumerate(lists):
            known = isinstance(labels, list) and all(
                isinstance(it, int | str) and not isinstance(it, bool) and it in label_of
                for it in labels
            )
            if not known:
                raise failures.BadInput(
                    f"RightLabels.file {self.file} has {str(labels)[:60]} for example {number}; "
                    f"give a list of numbers from 0 to {len(classes.own) - 1}, or of class names."
                )
        return [frozenset(label_of[it] for it in labels) for labels in lists]

    def _lists(self) -> list[typing.Any]:
        try:
            lists = files.parsed(pathlib.Path(self.file).expanduser().read_bytes())
        except (OSError, ValueError) as error:
            raise failures.BadInput(
                f"RightLabels.file {self.file} cannot be read ({failures.cause(error)}); give a "
                "JSON file with a list of lists."
            ) from None
        if not isinstance(lists, list):
            raise failures.BadInput(
                f"RightLabels.file {self.file} holds no list; give a JSON file with a list of "
                "lists, one for each example."
            )
        return lists

    def observe(
        self, seen: evaluators.Seen, labels: jax.Array, classes: evaluators.Classes
    ) -> Mapping[str, jax.Array]:
        return {"predicted": classification.predicted(seen.outputs)}

    def conclude(self, gathered: evaluators.Gathered) -> evaluators.Finding:
        sets = self.sets(gathered.classes, len(self._lists()))
        known = [number for number, example in enumerate(gathered.examples.ids) if sets[example]]
        rights = [sets[example] for example in gathered.examples.ids[known]]

        def share(labels: np.ndarray) -> float:
            return evaluators.accuracy(
                np.array([label in right for label, right in zip(labels, rights, strict=True)])
            )

        return evaluators.Finding(
            {
                "right_labels": share(gathered.examples.arrays["predicted"][known].tolist()),
                "right_labels_agreement": share(gathered.examples.labels[known].tolist()),
                "right_labels_examples": float(len(known)),
            }
        )
