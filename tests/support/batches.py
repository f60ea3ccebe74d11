"""Global batches, joined from the rows of several processes."""

import dataclasses
import hashlib
import typing

import numpy as np

from nest_dist.data import batch, index, pipeline, sequences
from nest_dist.data.transforms import crop, randaugment

# The transforms of a recipe on the host.
RECIPE = (
    crop.RandomResizedCrop(side=16, area=(0.05, 1.0)),
    crop.Flip(),
    randaugment.RandAugment(translation=7),
)
MIDDLE = (crop.ResizedCentreCrop(side=16, shorter_side=18),)
GREY_RECIPE = (crop.PaddedCrop(side=32, padding=2), crop.Flip())


@dataclasses.dataclass(frozen=True)
class Opened:
    """Configures a source that is open already."""

    source: typing.Any

    def open(self) -> batch.Source:
        return self.source


class Shuffled:
    """As Grain's endless shuffle, which takes milliseconds where examples are few."""

    def __init__(self, order: index.OneByOne) -> None:
        self.order = order

    def __getitem__(self, position: int) -> np.int64:
        epoch, number = divmod(position, self.order.examples)
        return sequences.permutation(self.order.examples, self.order.seed or 0, epoch, 0, 0)[number]


def rows_of(process: int, processes: int, global_batch: int) -> np.ndarray:
    """The rows of one of several processes."""
    count = global_batch // processes
    return np.arange(process * count, (process + 1) * count)


def training(
    source: typing.Any,
    steps: int = 3,
    processes: int = 1,
    global_batch: int = 8,
    first_step: int = 0,
    transforms: typing.Any = RECIPE,
    seed: int = 3,
    config: typing.Any = None,
    **fields: typing.Any,
) -> list[dict[str, np.ndarray]]:
    """Global batches of a source, which `config` has opened if it is given."""
    data = pipeline.TrainingData(config or Opened(source), transforms, **fields)
    processes_batches = []
    for process in range(processes):
        loaded = data.batches(
            source,
            seed=seed,
            global_batch=global_batch,
            rows=rows_of(process, processes, global_batch),
            first_step=first_step,
        )
        processes_batches.append([_copied(next(loaded)) for _ in range(steps)])
        loaded.close()
    return [_joined(local) for local in zip(*processes_batches, strict=True)]


def evaluation(
    source: typing.Any,
    processes: int = 1,
    global_batch: int = 8,
    transforms: typing.Any = MIDDLE,
    **fields: typing.Any,
) -> list[dict[str, np.ndarray]]:
    """All evaluation batches."""
    data = pipeline.EvaluationData(Opened(source), transforms, **fields)
    processes_batches = []
    for process in range(processes):
        rows = rows_of(process, processes, global_batch)
        loaded = data.batches(source, global_batch=global_batch, rows=rows)
        processes_batches.append([_copied(batch) for batch in loaded])
        loaded.close()
    return [_joined(local) for local in zip(*processes_batches, strict=True)]


def digests(batches: list[dict[str, np.ndarray]]) -> list[str]:
    """sha256 of pixels and labels, batch by batch."""
    return [
        hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()
        for batch in batches
    ]


def _joined(local: typing.Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in local]) for name in local[0]}


def _copied(batch: typing.Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in batch.items()}


def interrupted(rng, source, *, steps, **fields):
    """The batches of `steps` steps, as of `training`, stopped and resumed at random.

    Each part runs in another number of processes and threads; `source` opens it anew.
    """
    resumed, global_batch = [], fields["global_batch"]
    while len(resumed) < steps:
        count = rng.randint(1, steps - len(resumed))
        processes = rng.choice([it for it in (1, 2, 3, 4) if global_batch % it == 0])
        resumed += training(
            source.open(),
            steps=count,
            processes=processes,
            first_step=len(resumed),
            threads=rng.randint(1, 3),
            **fields,
        )
    return resumed
