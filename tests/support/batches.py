"""Global batches put together from what several processes would load."""

import hashlib
import typing

import numpy as np

from nest_dist.data import crop, pipeline, randaugment

# What the recipe does on the host.
RECIPE = (
    crop.RandomResizedCrop(side=16, area=(0.05, 1.0)),
    crop.Flip(),
    randaugment.RandAugment(translation=7),
)
MIDDLE = (crop.ResizedCentreCrop(side=16, shorter_side=18),)
GREY_RECIPE = (crop.PaddedCrop(side=32, padding=2), crop.Flip())


def rows_of(process: int, processes: int, global_batch: int) -> np.ndarray:
    """The rows of a process among equals."""
    each = global_batch // processes
    return np.arange(process * each, (process + 1) * each)


def training(
    source: typing.Any,
    steps: int = 3,
    processes: int = 1,
    global_batch: int = 8,
    first_step: int = 0,
    positions: typing.Any = None,
    transforms: typing.Any = RECIPE,
    seed: int = 3,
    **fields: typing.Any,
) -> tuple[list[dict[str, np.ndarray]], dict[str, typing.Any]]:
    """Whole batches, and the positions after the last one."""
    data = pipeline.TrainingData(source, transforms, **fields)
    parts, after = [], {}
    for process in range(processes):
        loaded = data.batches(
            source,
            seed=seed,
            global_batch=global_batch,
            rows=rows_of(process, processes, global_batch),
            first_step=first_step,
            positions=positions,
        )
        parts.append([_copied(next(loaded)) for _ in range(steps)])
        after |= loaded.positions()
        loaded.close()
    return [_joined(each) for each in zip(*parts, strict=True)], after


def evaluation(
    source: typing.Any,
    processes: int = 1,
    global_batch: int = 8,
    transforms: typing.Any = MIDDLE,
    **fields: typing.Any,
) -> list[dict[str, np.ndarray]]:
    """All evaluation batches."""
    data = pipeline.EvaluationData(source, transforms, **fields)
    parts = []
    for process in range(processes):
        rows = rows_of(process, processes, global_batch)
        loaded = data.batches(source, global_batch=global_batch, rows=rows)
        parts.append([_copied(each) for each in loaded])
        loaded.close()
    return [_joined(each) for each in zip(*parts, strict=True)]


def digests(batches: list[dict[str, np.ndarray]]) -> list[str]:
    """sha256 of pixels and labels, batch by batch."""
    return [
        hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()
        for batch in batches
    ]


def _joined(parts: typing.Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _copied(batch: typing.Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in batch.items()}
