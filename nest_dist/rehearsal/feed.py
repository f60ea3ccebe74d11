"""Whether hosts can make images as fast as their chips take them, and how long a run takes then."""

import dataclasses
from collections.abc import Iterator

from nest_dist.base import chips


@dataclasses.dataclass(frozen=True)
class Feed:
    """A run on chips and on the hosts that feed them."""

    chips: int
    host_chips: int
    host_cores: int  # of a host, as virtual machines count them
    chip_images_per_second: float  # that a chip can take
    core_images_per_second: float | None  # that a core can make; None if nobody has measured it
    images: float

    @property
    def wanted(self) -> float:
        """Images a second that a host must make."""
        return self.chip_images_per_second * self.host_chips

    @property
    def cores(self) -> float | None:
        """Cores of a host that this takes."""
        rate = self.core_images_per_second
        return None if rate is None else self.wanted / rate

    @property
    def hours(self) -> float:
        """Of the run, at the speed of chips or hosts, whichever is less."""
        share = 1.0 if self.cores is None else min(1.0, self.host_cores / self.cores)
        return self.images / (self.chips * self.chip_images_per_second * share) / 3600


def of_run(
    chip: chips.Chip, devices: int, speed: float, core_speed: float | None, images: float
) -> Feed:
    """The feed of a run on so many devices; speeds are in images a second."""
    number = devices // chip.devices
    host_chips = min(number, chip.host_chips)
    cores = chip.host_cores * host_chips // chip.host_chips
    return Feed(number, host_chips, cores, speed, core_speed, images)


def screen(feed: Feed) -> Iterator[str]:
    """Lines on the host and on the run."""
    wants = f"a host of {feed.host_chips} chips must make {feed.wanted:,.0f} images/s"
    if feed.cores is None:
        yield f"{wants}; --core_images_per_second tells how many of its cores that takes"
    else:
        limit = "hosts are" if feed.cores > feed.host_cores else "chips are"
        yield (
            f"{wants}: {feed.cores:,.1f} of its {feed.host_cores} cores at "
            f"{feed.core_images_per_second:,.0f} images/s a core, so the {limit} the limit"
        )
    yield f"the run takes {feed.hours:,.1f} hours, {feed.hours * feed.chips:,.0f} chip-hours"
