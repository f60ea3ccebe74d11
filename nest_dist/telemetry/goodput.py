"""Where the time of a run went, by cause, kept in its folder across restarts."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator

# Every second since the process began belongs to one of these; what no other one claims is "start"
# before the first step and after the last. "lost" is what a restart had to do again.
CAUSES = (
    *("start", "restore", "compile", "step", "data_wait"),
    *("evaluation", "save", "profile", "lost"),
)
# What a restart from an older checkpoint has to do again.
REPEATED = ("step", "data_wait", "evaluation")
WRITE_SECONDS = 1.0


class Ledger:
    """Seconds by cause. Causes nest: while an inner one runs, the outer one's clock stands."""

    def __init__(self) -> None:
        """Begins to count; what came before in this process is its start."""
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self._path: pathlib.Path | None = None
        self._saved: dict[int, dict[str, float]] = {}
        self._running = ["start"]
        self._since = time.perf_counter() - _seconds_since_process_start()
        self._written = 0.0

    def resume(self, path: pathlib.Path | None, first_step: int) -> None:
        """Adds the books of earlier attempts; what they did after `first_step` is lost.

        Args:
            path: of the books; None on processes that do not write.
            first_step: steps that need not be done again.
        """
        self._path = path
        if path is not None and path.exists():
            books = json.loads(path.read_text(encoding="utf-8"))
            for cause, seconds in books["seconds"].items():
                self.seconds[cause] += seconds
            self._saved = {int(step): seconds for step, seconds in books["saved"].items()}
        self.rewind(first_step)

    def rewind(self, step: int) -> None:
        """Counts as lost what was done after `step`."""
        self._charge()
        kept = [saved for saved in self._saved if saved <= step]
        done = self._saved[max(kept)] if kept else dict.fromkeys(REPEATED, 0.0)
        for cause in REPEATED:
            self.seconds["lost"] += self.seconds[cause] - done[cause]
            self.seconds[cause] = done[cause]
        self._saved = {saved: self._saved[saved] for saved in kept}
        self.write()

    def saved(self, step: int) -> None:
        """Notes that a checkpoint of `step` is being saved: what came before it is not lost."""
        self._charge()
        self._saved[step] = {cause: self.seconds[cause] for cause in REPEATED}
        self.write()

    @contextlib.contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """Counts the time inside under `cause`."""
        self._charge()
        self._running.append(cause)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def metrics(self) -> dict[str, float]:
        """Under TensorBoard names: seconds by cause, and the share that was training steps."""
        self._charge()
        total = sum(self.seconds.values())
        return {
            "goodput/fraction": self.seconds["step"] / total,
            **{f"goodput/{cause}_seconds": self.seconds[cause] for cause in CAUSES},
        }

    def write(self, at_once: bool = True) -> None:
        """Brings the books to disk; not `at_once` but every second, where it is done often."""
        self._charge()
        if self._path is None or (not at_once and self._since - self._written < WRITE_SECONDS):
            return
        self._written = self._since
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"seconds": self.seconds, "saved": self._saved}))
        new.replace(self._path)

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


def _seconds_since_process_start() -> float:
    """Interpreter and imports included, on Linux; elsewhere 0."""
    stat = pathlib.Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    # Field 22 in clock ticks since boot; the name before it may itself hold spaces.
    started = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
