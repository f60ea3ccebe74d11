"""The largest batch that the memory of a device holds, for each policy of computing again."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator

from nest_dist.base import checks, failures
from nest_dist.commands import audit, compatibility, forecast, wiring
from nest_dist.model import encoder
from nest_dist.parallel import chips

# The memory that a step needs with so many images, and what else is known of it; None if the
# compiler refuses.
Measure = Callable[[wiring.Wiring], forecast.Forecast | None]


@dataclasses.dataclass(frozen=True)
class Try:
    """One policy with one batch; None for what is not known, as the compiler refused it."""

    remat: str
    images_a_device: float
    fits: bool
    bytes_a_device: int | None = None
    cycles_an_image: float | None = None
    images_per_second_a_chip: float | None = None


def policies(asked: list[str] | None) -> tuple[str, ...]:
    """Those that are asked for, or all.

    Raises:
        BadInput: for an unknown one.
    """
    known = typing.get_args(encoder.Remat)
    for policy in asked or ():
        checks.one_of("--remat", policy, known)
    return tuple(asked or known)


def require_limit(wired: wiring.Wiring) -> float:
    """Bytes of a device.

    Raises:
        BadInput: if they are not known.
    """
    kind = wired.layout.mesh.devices.flat[0].device_kind
    if (chip := chips.of_kind(kind)) is None:
        raise failures.BadInput(
            f"--fit is given for {kind}, whose memory is not in the table of chips; give a "
            f"--topology of {', '.join(each.generation for each in chips.CHIPS.values())}."
        )
    return chip.memory_bytes


def search(
    wired: wiring.Wiring,
    asked: tuple[str, ...],
    limit: float,
    measure: Measure,
    tell: Callable[[Try], None],
) -> list[Try]:
    """Everything that is tried, policy by policy.

    Args:
        wired: the run; its batch is the first that is tried.
        asked: policies.
        limit: bytes of a device.
        measure: compiles.
        tell: is called with each try at once, as each may take minutes.
    """
    tries: list[Try] = []
    unit = compatibility.batch_unit(wired.run, wired.layout)
    most = len(wired.training_source) // unit
    fixed = audit.device_bytes(wired.shapes)
    for policy in asked:
        model = wired.run.model.clone(remat=policy)

        def needed(units: int) -> float:
            run = dataclasses.replace(wired.run, model=model, global_batch=units * unit)  # noqa: B023
            found = measure(dataclasses.replace(wired, run=run)) or {}
            memory = found.get("memory", {"total": None, "fits": False})
            each = Try(
                remat=run.model.remat,
                images_a_device=run.global_batch / wired.layout.mesh.size,
                fits=memory["fits"],
                bytes_a_device=memory["total"],
                cycles_an_image=found.get("cycles", {}).get("image"),
                images_per_second_a_chip=found.get("images_per_second_a_chip"),
            )
            tell(each)
            tries.append(each)
            return math.inf if memory["total"] is None else memory["total"]

        largest(needed, limit, fixed, wired.run.global_batch // unit, most)
    return tries


def largest(
    needed: Callable[[int], float], limit: float, fixed: float, first: int, most: int
) -> int:
    """The largest number whose need is within the limit, to an eighth of it; 0 if none is.

    Args:
        needed: grows about as a fixed part and one in proportion to its argument.
        limit: of it.
        fixed: about the fixed part.
        first: number to try.
        most: number that makes sense.
    """
    low, high, guess = 0, most + 1, min(first, most)
    while high - low > 1 and (high > most or high - low > low / 8):
        need = needed(guess)
        if need <= limit:
            low = guess
        else:
            high = guess
        # In proportion to this one, but between those that are known; the next after the largest
        # that is known to fit is far enough from it to end the search.
        in_proportion = guess * (limit - fixed) / max(need - fixed, 1)
        step = max(1, low // 8)
        guess = min(max(int(in_proportion), low + step), high - 1)
    return low


def table(tries: list[Try]) -> Iterator[str]:
    """The largest that fits of each policy, in lines."""
    yield (
        f"{'remat':<8}{'images a device':>16}{'GB a device':>13}{'cycles an image':>17}"
        f"{'images/s a chip':>17}"
    )
    for policy in dict.fromkeys(each.remat for each in tries):
        fitting = [each for each in tries if each.remat == policy and each.fits]
        if not fitting:
            smallest = min(each.images_a_device for each in tries if each.remat == policy)
            yield f"{policy:<8}not even {smallest:g} images a device fit"
            continue
        best = max(fitting, key=lambda each: each.images_a_device)
        yield (
            f"{policy:<8}{best.images_a_device:>16g}{(best.bytes_a_device or 0) / 1e9:>13.2f}"
            f"{best.cycles_an_image or 0:>17,.0f}{best.images_per_second_a_chip or 0:>17,.0f}"
        )
