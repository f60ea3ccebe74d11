"""JAX's persistent compilation cache, in a folder of this user.

A compiled program is run unseen. So it is read only from where nobody else can have put it, and not
from the folder of the run, which others may write.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import jax

from nest_dist.base import files
from nest_dist.cluster import jax_private, processes
from nest_dist.config import workdir as workdirs

HEARTBEAT_SECONDS = 20.0
# Programs that took longer are kept. JAX's own limit of 1 s leaves out evaluations of small models,
# which every restart would compile again.
MIN_COMPILE_SECONDS = 0.1
_HIT = "/jax/compilation_cache/cache_hits"
_UNREADABLE_ENTRY = "persistent compilation cache"


@contextlib.contextmanager
def enabled(workdir: workdirs.Folder, say: Callable[[str], None]) -> Iterator[None]:
    """Caches programs that are compiled inside in `of_user`; ends with a barrier.

    The first collective of a group of processes tolerates a delay of 30 s only, and their compile
    times may differ by more: hence the barrier.

    Every process writes its entries, since each host has a folder of its own. JAX recompiles an
    entry that it cannot read. So processes and runs may share the folder, and a kill at any time
    does no harm. A cache that is configured by JAX's own means (JAX_COMPILATION_CACHE_DIR) is used
    instead.
    """
    folder = of_user() if jax.config.jax_compilation_cache_dir is None else None
    if folder and (problem := problem_of(folder)):
        say(f"compiled programs are not kept, since {folder} {problem}")
        folder = None
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    # Seconds of the last compilation for this workdir of which nothing was cached.
    last = folder and folder / f"{hashlib.sha256(str(workdir).encode()).hexdigest()[:12]}.seconds"
    hits: list[str] = []

    def count_hit(event: str, **_: str | int) -> None:
        if event == _HIT:
            hits.append(event)

    started = time.perf_counter()
    say("compiling ...")
    jax.monitoring.register_event_listener(count_hit)
    writing = jax_private.every_process_writes_compiled() if folder else contextlib.nullcontext()
    with warnings.catch_warnings(record=True) as caught, _heartbeat(last, say), writing:
        warnings.simplefilter("always")
        yield
    jax.monitoring.unregister_event_listener(count_hit)
    processes.barrier("compiled")
    earlier = f", programs from the cache of an earlier start: {len(hits)}" if hits else ""
    seconds = time.perf_counter() - started
    say(f"compiled in {seconds:.0f} s{earlier}")
    if last and not hits and processes.is_primary():
        with contextlib.suppress(OSError):
            last.write_text(f"{seconds:.1f}\n")
    unreadable = [warning for warning in caught if _UNREADABLE_ENTRY in str(warning.message)]
    for warning in caught:
        if warning not in unreadable:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if folder and unreadable:
        # JAX never replaces an entry that it cannot read.
        shutil.rmtree(folder, ignore_errors=True)
        say(f"{folder} was corrupt and is now empty ({unreadable[0].message})")


@contextlib.contextmanager
def _heartbeat(last: pathlib.Path | None, say: Callable[[str], None]) -> Iterator[None]:
    """Says now and then how long it takes, and how long it took without the cache."""
    before = ""
    if last:
        with contextlib.suppress(OSError, ValueError):  # the first time
            before = f"; the last time it took {float(last.read_text()):.0f} s"
    started, done = time.perf_counter(), threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            say(f"compiling, {time.perf_counter() - started:.0f} s{before}")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def of_user() -> pathlib.Path:
    """Where this user keeps programs for this kind of machine: in ~/.cache, or XDG_CACHE_HOME."""
    return files.user_cache("compiled") / machine()


def problem_of(folder: pathlib.Path) -> str:
    """Makes a folder that this user alone may write; empty, or why it is none."""
    if not folder.is_absolute():  # this user has no home
        return "is no absolute path; XDG_CACHE_HOME names another place"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return f"cannot be made ({error.strerror}); XDG_CACHE_HOME names another place"
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others than the user {os.getuid()}; remove it"
    return ""


def machine() -> str:
    """A digest of this host's instruction set: a program may use instructions that others lack."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
