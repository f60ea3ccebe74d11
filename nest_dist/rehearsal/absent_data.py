"""A stand-in for data that is not on this machine: the schedule depends on its size alone."""

import dataclasses
import typing

from nest_dist.base import checks, failures
from nest_dist.data import batch
from nest_dist.data.sources import retries
from nest_dist.experiment import run as runs

# Of ImageNet.
EXAMPLES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Absent(batch.Source):
    """A data set of which the size alone is known."""

    examples: int
    class_names: tuple[str, ...] = ()
    fingerprint: str = "absent"

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> typing.NoReturn:
        raise IndexError(index)


def absent(run: runs.Run, examples: int | None) -> Absent | None:
    """Replaces data that is missing here, or whose size is given; else None.

    Raises:
        BadInput: if the size is no size.
    """
    if examples is None:
        try:
            retries.opened("the training split", run.data.source)
            retries.opened("the evaluation split", run.evaluation.data.source)
            return None
        except (failures.BadInput, failures.Unavailable) as missing:
            reason = failures.first_line(missing).partition(";")[0]
            print(
                f"the data is not here ({reason}); the learning rate is that of {EXAMPLES:,} "
                "training examples, another number is set by --examples"
            )
            examples = EXAMPLES
    checks.in_range("--examples", examples, 1)
    return Absent(examples)
