"""Compiled programs, kept in the folder of the run for its next start."""

import contextlib
import hashlib
import pathlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator

import jax
from etils import epath

from nest_dist.commands import workdirs
from nest_dist.parallel import hosts

FOLDER = "compiled"
# Processes may take as much longer than one another.
SKEW_SECONDS = 3600
_FOUND = "/jax/compilation_cache/cache_hits"
_TROUBLE = "persistent compilation cache"


@contextlib.contextmanager
def kept(workdir: workdirs.Folder, say: Callable[[str], None]) -> Iterator[None]:
    """What is compiled inside is taken from WORKDIR/compiled, or put there; ends on all processes.

    The first collective of a group of processes allows them 30 s of difference only, compilation
    may differ by more: hence the barrier.

    JAX writes entries from process 0 only and recompiles what it cannot read, so that several
    processes, runs and a kill at any time do no harm. Where a cache is configured by JAX's own
    means (JAX_COMPILATION_CACHE_DIR), that one is used.

    Args:
        workdir: of the run.
        say: shows a line.
    """
    folder = workdir / FOLDER / machine()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    found: list[str] = []

    def count(event: str, **_: str | int) -> None:
        if event == _FOUND:
            found.append(event)

    started = time.perf_counter()
    say("compiling ...")
    jax.monitoring.register_event_listener(count)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    jax.monitoring.unregister_event_listener(count)
    hosts.barrier("compiled", SKEW_SECONDS)
    earlier = f", programs taken from an earlier start: {len(found)}" if found else ""
    say(f"compiled in {time.perf_counter() - started:.0f} s{earlier}")
    troubles = [warning for warning in caught if _TROUBLE in str(warning.message)]
    for warning in caught:
        if warning not in troubles:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if troubles and hosts.lead():
        # JAX never replaces an entry that it cannot read.
        epath.Path(folder).rmtree(missing_ok=True)
        say(f"{folder} was damaged and is emptied ({troubles[0].message})")


def machine() -> str:
    """Stands for this kind of host: its programs may use instructions that another lacks."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
