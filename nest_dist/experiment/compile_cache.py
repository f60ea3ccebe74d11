"""JAX's persistent compilation cache, in the folder of the run."""

import contextlib
import hashlib
import pathlib
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import jax
from etils import epath

from nest_dist.cluster import processes
from nest_dist.config import workdir as workdirs

FOLDER = "compiled"
SECONDS = "seconds.txt"  # that the last compilation took, of which nothing was cached
HEARTBEAT_SECONDS = 20.0
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
    with warnings.catch_warnings(record=True) as caught, _heartbeat(epath.Path(folder), say):
        warnings.simplefilter("always")
        yield
    jax.monitoring.unregister_event_listener(count_hit)
    processes.barrier("compiled")
    earlier = f", programs from the cache of an earlier start: {len(hits)}" if hits else ""
    seconds = time.perf_counter() - started
    say(f"compiled in {seconds:.0f} s{earlier}")
    if not hits and processes.is_primary():
        with contextlib.suppress(Exception):  # the library of buckets raises errors of any class
            epath.Path(folder).mkdir(parents=True, exist_ok=True)
            (epath.Path(folder) / SECONDS).write_text(f"{seconds:.1f}\n")
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


@contextlib.contextmanager
def _heartbeat(folder: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """Says now and then how long it takes, and how long it took without the cache."""
    try:
        last = f"; the last time it took {float((folder / SECONDS).read_text()):.0f} s"
    except Exception:  # the first time; the library of buckets raises errors of any class
        last = ""
    started, done = time.perf_counter(), threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            say(f"compiling, {time.perf_counter() - started:.0f} s{last}")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def machine() -> str:
    """A digest of this host's instruction set: a program may use instructions that others lack."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
