"""The time of a run by cause, summed over all its restarts in a file of its folder."""

import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator

from nest_dist.base import files
from nest_dist.telemetry import records

# Every second of the process counts under one of these. "import" has the seconds before the ledger,
# "meet" those until all processes have met, "start" those without another cause. "lost" has the
# seconds of steps that a restart or a rewind repeats.
CAUSES = (
    *("import", "meet", "start", "restore", "compile", "step", "data_wait"),
    *("evaluation", "save", "profile", "lost"),
)
# Causes whose work since the last checkpoint is repeated by a restart.
REPEATED = ("step", "data_wait", "evaluation")
WRITE_SECONDS = 1.0


class Ledger:
    """Seconds by cause. Causes nest: while an inner one runs, the clock of the outer one stops."""

    def __init__(self) -> None:
        """Starts the clock; the seconds of the process before this call are "import"."""
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self._path: pathlib.Path | None = None
        self._saved: dict[int, dict[str, float]] = {}
        self._cause = "import"
        self._since = time.perf_counter() - _seconds_since_process_start()
        self._charge()
        self._cause = "start"
        # Of this attempt: what earlier ones spent, and for how long no process was there.
        self._earlier, self._down = dict.fromkeys(CAUSES, 0.0), math.nan
        self._written = 0.0
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "goodput")

    def resume(self, path: pathlib.Path | None, first_step: int) -> None:
        """Adds the record of earlier attempts; their time after `first_step` is lost.

        Args:
            path: of the record; None on processes that do not write.
        """
        self._path = path
        self._charge()
        own = self.seconds
        if path is not None and (record := records.read(path, _parsed)):
            seconds, self._saved, written_at = record
            # By the wall clock, which may have been set in between.
            self._down = time.time() - sum(own.values()) - written_at
            self.seconds = {cause: seconds[cause] + own[cause] for cause in CAUSES}
        self.rewind(first_step)
        self._earlier = {cause: self.seconds[cause] - own[cause] for cause in CAUSES}

    def rewind(self, step: int) -> None:
        """Counts the time after `step` as lost."""
        self._charge()
        self._saved = {saved: seconds for saved, seconds in self._saved.items() if saved <= step}
        valid = self._saved[max(self._saved)] if self._saved else dict.fromkeys(REPEATED, 0.0)
        for cause in REPEATED:
            self.seconds["lost"] += self.seconds[cause] - valid[cause]
            self.seconds[cause] = valid[cause]
        self.write()

    def first_step(self) -> str:
        """The seconds from the last sign of the attempt before, or the start, to this moment."""
        self._charge()
        spent = {cause: self.seconds[cause] - self._earlier[cause] for cause in CAUSES[:-1]}
        spent = {"down": self._down, **spent} if self._down >= 0 else spent
        since = "end of the attempt before" if "down" in spent else "start"
        causes = [f"{cause.replace('_', ' ')} {it:.1f}" for cause, it in spent.items() if it > 0.05]
        return f"first step {sum(spent.values()):.1f} s after the {since}: {', '.join(causes)}"

    def saved(self, step: int) -> None:
        """Records that a checkpoint of `step` is being saved: the time before it is not lost."""
        self._charge()
        self._saved[step] = {cause: self.seconds[cause] for cause in REPEATED}
        self.write()

    @contextlib.contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """Counts the time inside under `cause`."""
        self._charge()
        outer, self._cause = self._cause, cause
        try:
            yield
        finally:
            self._charge()
            self._cause = outer

    def metrics(self) -> dict[str, float]:
        """Under TensorBoard names: seconds by cause, and the share that was training steps."""
        self._charge()
        total = sum(self.seconds.values())
        return {
            "goodput/fraction": self.seconds["step"] / total,
            **{f"goodput/{cause}_seconds": self.seconds[cause] for cause in CAUSES},
        }

    def write(self, at_once: bool = True) -> None:
        """Writes the record in the background; unless `at_once`, at most every second."""
        self._charge()
        if self._path is None or (not at_once and self._since - self._written < WRITE_SECONDS):
            return
        self._written = self._since
        text = json.dumps(
            {"seconds": self.seconds, "saved": self._saved, "written_at": time.time()}
        )
        self._writer.submit(self._write, self._path, text)

    def close(self) -> None:
        self.write()
        self._writer.shutdown()

    def _write(self, path: pathlib.Path, text: str) -> None:
        with records.tolerated(path):
            files.write_text_durably(path, text)

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self._cause] += now - self._since
        self._since = now


def _parsed(text: bytes) -> tuple[dict[str, float], dict[int, dict[str, float]], float]:
    record = files.parsed(text)
    seconds = {cause: float(record["seconds"].get(cause, 0)) for cause in CAUSES}
    saved = {
        int(step): {cause: float(values[cause]) for cause in REPEATED}
        for step, values in record["saved"].items()
    }
    if not all(map(math.isfinite, seconds.values())):
        raise ValueError("seconds that are not finite")
    return seconds, saved, float(record.get("written_at", math.nan))  # older ones have no time


def _seconds_since_process_start() -> float:
    """Interpreter and imports included, on Linux; elsewhere 0."""
    stat = pathlib.Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    # Field 22 in clock ticks since boot; the name before it may itself hold spaces.
    started = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
