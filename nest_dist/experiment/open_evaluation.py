"""An evaluation of a run with its data sets open, and their classes in order."""

import dataclasses
import functools
from collections.abc import Sequence

from nest_dist.base import failures
from nest_dist.data import batch, classes, pipeline, targets
from nest_dist.data.sources import retries
from nest_dist.experiment import run as runs
from nest_dist.train import evaluators


@dataclasses.dataclass(frozen=True)
class OpenEvaluation:
    """One of `Run.evaluations`."""

    config: runs.Evaluation
    judges_classes: bool  # whether its classes must be those of the model
    stored: batch.Source  # its data set, with classes in an order of its own
    class_names: tuple[str, ...]
    # Of which examples measures learn; None if none does
    reference_data: pipeline.EvaluationData | None = None
    # These examples, in an order of classes of their own
    stored_reference: batch.Source | None = None

    @functools.cached_property
    def source(self) -> batch.Source:
        """Its data set, with the labels of `class_names`."""
        return self._in_order(self.stored)

    @functools.cached_property
    def reference(self) -> batch.Source | None:
        """Likewise, the examples of which measures learn."""
        return None if self.stored_reference is None else self._in_order(self.stored_reference)

    @property
    def classes(self) -> evaluators.Classes:
        """Those of the labels, and of the data set itself."""
        return evaluators.Classes(self.class_names, self.stored.class_names)

    def in_order(self, class_names: Sequence[str]) -> "OpenEvaluation":
        """The evaluation with the labels of a checkpoint, if it judges the model's classes."""
        if not self.judges_classes or self.class_names == tuple(class_names):
            return self
        ordered = dataclasses.replace(self, class_names=tuple(class_names))
        assert ordered.source is not None
        return ordered

    def require_fit(self, num_levels: int, num_classes: int | None) -> None:
        """Checks the measures against model and data.

        Args:
            num_classes: of its head; 0 without one.
        """
        examples = len(self.stored)
        reference = 0 if self.reference is None else len(self.reference)
        for measure in self.config.measures:
            name = type(measure).__name__
            if measure.uses_head and not num_classes:
                raise failures.BadInput(
                    f"{name} judges the classes that the model predicts, and this model has no "
                    "head (NesT.num_classes is 0); measure its features, by KNearest, FewShot or "
                    "LinearProbe."
                )
            for level in measure.levels:
                if level is not None and level >= num_levels:
                    raise failures.BadInput(
                        f"{name}.level is {level}, and the model has {num_levels} levels; give "
                        f"0 to {num_levels - 1}, or None for what the head receives."
                    )
            measure.require_fit(self.classes, examples, reference)

    def _in_order(self, source: batch.Source) -> batch.Source:
        name = f" {self.config.name!r}" if self.config.name else ""
        whose = "the training split" if self.judges_classes else "the reference examples"
        remedy = f"give data of these classes to the evaluation{name}"
        if self.judges_classes and not self.config.name:
            remedy = "give an evaluation split with these classes"
        return classes.in_order(source, self.class_names, whose, remedy)


def opened(
    run: runs.Run, trained: batch.Source | None, absent: batch.Source | None = None
) -> tuple[OpenEvaluation, ...]:
    """All evaluations of a run.

    Args:
        trained: its training split; None if it is not open.
        absent: replaces all data sets on a machine that lacks them.
    """
    done = []
    for config in run.evaluations:
        if config.measures and targets.form_of(run.step.objective.needs) == targets.ClassSets():
            raise failures.BadInput(
                f"Evaluation.measures has {type(config.measures[0]).__name__}, which takes "
                f"pictures of one class, and {type(run.step.objective).__name__} sets of classes; "
                "leave it out."
            )
        title = f"the data of evaluation {config.name!r}" if config.name else "the evaluation split"
        stored = absent if absent is not None else retries.opened(title, config.data.source)
        data, reference = None, None
        if config.learns:
            data = config.reference or dataclasses.replace(config.data, source=run.data.source)
            reference = absent if absent is not None else trained
            if reference is None or (absent is None and config.reference is not None):
                reference = retries.opened("the reference examples", data.source)
        names = stored.class_names
        judges = config.judges_classes(run.step.objective)
        if judges and trained is not None:
            names = trained.class_names
        elif reference is not None:  # the evaluation split may lack some of its classes
            names = reference.class_names
        evaluation = OpenEvaluation(config, judges, stored, names, data, reference)
        assert evaluation.source is not None  # which compares the classes
        done.append(evaluation)
    return tuple(done)
