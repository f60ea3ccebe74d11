"""JAX's persistent compilation cache, in the folder of the run."""

import contextlib
import hashlib
import pathlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator

import jax
from etils import epath

from nest_dist.cluster import processes
from nest_dist.config import workdir as workdirs

FOLDER = "compiled"
_HIT = "/jax/compilation_cache/cache_hits"
_UNREADABLE_ENTRY = "persistent compilation cache"


@contextlib.contextmanager
def enabled(workdir: workdirs.Folder, say: Callable[[str], None]) -> Iterator[None]:
    """Caches programs that are compiled inside in WORKDIR/compiled; ends with a barrier.

    The first collective of a group of processes tolerates a delay of 30 s only, and their compile
    times may differ by more: hence the barrier.

    JAX writes entries from process 0 only, and recompiles an entry that it cannot read. So several
    processes and runs may share the folder, and a kill at any time does no harm. A cache that is
    configured by JAX's own means (JAX_COMPILATION_CACHE_DIR) is used instead.
    """
    folder = workdir / FOLDER / machine()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    hits: list[str] = []

    def count_hit(event: str, **_: str | int) -> None:
        if event == _HIT:
            hits.append(event)

    started = time.perf_counter()
    say("compiling ...")
    jax.monitoring.register_event_listener(count_hit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    jax.monitoring.unregister_event_listener(count_hit)
    processes.barrier("compiled")
    earlier = f", programs from the cache of an earlier start: {len(hits)}" if hits else ""
    say(f"compiled in {time.perf_counter() - started:.0f} s{earlier}")
    unreadable = [warning for warning in caught if _UNREADABLE_ENTRY in str(warning.message)]
    for warning in caught:
        if warning not in unreadable:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if unreadable and processes.is_primary():
        # JAX never replaces an entry that it cannot read.
        epath.Path(folder).rmtree(missing_ok=True)
        say(f"{folder} was corrupt and is now empty ({unreadable[0].message})")


def machine() -> str:
    """A digest of this host's instruction set: a program may use instructions that others lack."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
