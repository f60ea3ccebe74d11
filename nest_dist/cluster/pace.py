"""How fast the processes of a run are, and which of them keeps the others waiting.

All finish a step together, since they exchange gradients. So a process that waits longer for its
data than the others makes all of them wait as much longer. Without that, its step would have taken
less: the step it makes of all, over the step that it could be, says how much slower it is.
"""

import dataclasses
import statistics

# A process is named that was slower by this factor than it would be with the median's data.
SLOW_FACTOR = 1.5
# For so long; the numbers are means over this time, too.
WINDOW_SECONDS = 60.0


@dataclasses.dataclass
class _Sample:
    """What a process had done by a time: steps, and seconds of waiting for data."""

    seconds: float
    tick: int
    waited: float


class Pace:
    """Means over windows of `WINDOW_SECONDS`.

    Attributes:
        metrics: of the last window, by name; empty before its end.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self._first: dict[int, _Sample] = {}  # of the window, by process
        self._last: dict[int, _Sample] = {}
        self._since = 0.0
        self._named = -1

    def add(self, index: int, seconds: float, tick: int, waited: float) -> None:
        """A process has done `tick` steps, and has waited for data for `waited` seconds in all."""
        sample = _Sample(seconds, tick, waited)
        if tick > 0:
            self._first.setdefault(index, sample)
            self._last[index] = sample

    def slow(self, seconds: float) -> str:
        """Ends the window if it is time; a line that names a slow process, once, or nothing."""
        if seconds - self._since < WINDOW_SECONDS:
            return ""
        self._since = seconds
        steps: dict[int, float] = {}
        waits: dict[int, float] = {}
        for index, last in self._last.items():
            first = self._first[index]
            if done := last.tick - first.tick:
                steps[index] = (last.seconds - first.seconds) / done
                waits[index] = (last.waited - first.waited) / done
        self._first, self._last = self._last, {}
        if len(steps) < 2:
            self.metrics = {}
            return ""
        slowest = max(waits, key=waits.__getitem__)
        step, wait = statistics.median(steps.values()), statistics.median_low(waits.values())
        self.metrics = {
            "processes/step_seconds_slowest": max(steps.values()),
            "processes/step_seconds_median": step,
            "processes/data_wait_seconds_slowest": waits[slowest],
            "processes/data_wait_seconds_median": wait,
        }
        alone = max(step - (waits[slowest] - wait), 1e-9)
        if step / alone < SLOW_FACTOR:
            self._named = -1
            return ""
        if slowest == self._named:
            return ""
        self._named = slowest
        return (
            f"process {slowest} is slow: for {WINDOW_SECONDS:.0f} s each step waited "
            f"{waits[slowest]:.2f} s for its data, the median {wait:.2f} s; steps take "
            f"{step:.2f} s and could take {alone:.2f} s. Look at that host's processor, disk and "
            "network."
        )
