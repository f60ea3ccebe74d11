"""Batches of a run for a training loop of one's own, in one process and without a mesh."""

import os
import typing
from collections.abc import Iterator, Sequence

import numpy as np

from nest_dist.base import checks
from nest_dist.data import targets
from nest_dist.data.sources import retries
from nest_dist.experiment import run as runs

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
SPLITS = ("train", "evaluation")


def batches(
    gin_file: Files,
    gin_bindings: str | Sequence[str] = (),
    split: typing.Literal["train", "evaluation"] = "train",
    step: int = 0,
) -> "Batches":
    """The batches that a run would train on, or be evaluated on, as dictionaries of NumPy arrays.

    "image" is uint8 [B, H, W, C] after the transforms of the host, of a run with two views
    [B, 2, H, W, C]. "label" is int32 [B]; with the objective MultiLabel it is "labels" uint8
    [B, classes] of 0 absent, 1 present, 2 unknown, and without labels it is left out. Those for
    training are shuffled anew each epoch and have no end; the batch of a step is the same whenever
    and wherever it is asked for. Those for evaluation have each example once, and "weight" float32
    [B], 0 for the padding of the last batch.

    Args:
        gin_file: path, shipped name, or several of them; as --gin_file.
        gin_bindings: as --gin_bindings; one or several.
        split: "train" or "evaluation".
        step: of the first batch; `Batches.step` tells where to go on.
    Raises:
        BadInput: if configuration and data do not fit.

    Example:
        >>> import nest_dist
        >>> data = nest_dist.batches("runs/quickstart.gin", "Run.global_batch = 4", step=10)
        >>> batch = next(data)
        >>> batch["image"].shape, batch["label"].shape, data.step
        ((4, 32, 32, 1), (4,), 11)
        >>> data.close()
    """
    checks.one_of("split", split, SPLITS)
    checks.in_range("step", step, 0)
    files = [gin_file] if isinstance(gin_file, str | os.PathLike) else gin_file
    bindings = [gin_bindings] if isinstance(gin_bindings, str) else gin_bindings
    return Batches(runs.load([str(file) for file in files], bindings), split, step)


class Batches:
    """An iterator of batches; `close` or `with` ends its threads and workers.

    Attributes:
        class_names: the name of each label.
        step: of the next batch.
    """

    def __init__(self, run: runs.Run, split: str, step: int) -> None:
        """Opens the split.

        Args:
            split: "train" or "evaluation".
        """
        self.run, self.step = run, step
        rows = np.arange(run.global_batch)
        labels = targets.form_of(run.step.objective.needs)
        if split == "train":
            source = retries.opened("the training split", run.data.source)
            self._batches = run.data.batches(
                source,
                seed=run.seed,
                global_batch=run.global_batch,
                rows=rows,
                first_step=step,
                labels=labels,
            )
        else:
            source = retries.opened("the evaluation split", run.evaluation.data.source)
            self._batches = run.evaluation.data.batches(
                source, global_batch=run.global_batch, rows=rows, labels=labels
            )
            for _ in range(step):
                next(self._batches, None)
        self.class_names, self.num_examples = source.class_names, len(source)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        # Copies: memory that workers share is used again.
        batch = {name: np.array(values) for name, values in next(self._batches).items()}
        self.step += 1
        return batch

    def __repr__(self) -> str:
        names = f"{len(self.class_names)} classes"
        return (
            f"nest_dist.Batches(step={self.step}, {self.run.global_batch} of "
            f"{self.num_examples} examples, {names})"
        )

    def close(self) -> None:
        """Ends threads and worker processes."""
        self._batches.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
