"""Tasks for worker processes that end with their parent, however that ends."""

import concurrent.futures
import concurrent.futures.process
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import threading
import typing
from collections.abc import Callable, Sequence

from nest_dist.base import failures
from nest_dist.cluster import stop_signals

REPORT_SECONDS = 0.2

# A worker calls it once for each example; it raises `Stopped` after the other workers have stopped.
Tick: typing.TypeAlias = Callable[[], None]
Task = typing.TypeVar("Task")
Result = typing.TypeVar("Result")


class Stopped(Exception):
    """Another task has failed, or the user has stopped the program."""


def run(
    work: Callable[[Task, Tick], Result],
    tasks: Sequence[Task],
    processes: int,
    report: Callable[[int], None],
) -> list[Result]:
    """The results of `work(task, tick)` for all tasks, in their order.

    Args:
        work: a function of a module.
        tasks: pickled for other processes.
        report: called now and then with the number of ticks so far.
    Raises:
        BadInput: if a worker was killed; or the error of a task, after all workers have stopped.
    """
    if not tasks:
        return []
    # Forking a process that has threads may lock up.
    context = multiprocessing.get_context("spawn")
    # Without locks: each task has a counter of its own, and the last number says stop.
    shared = context.RawArray(ctypes.c_uint64, len(tasks) + 1)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(tasks)), context, initializer=_enter, initargs=(shared,)
    )
    try:
        # Ctrl-C is for this process, which then says stop. The first task starts all workers.
        with stop_signals.held_interrupts():
            results = [pool.submit(_call, work, task, number) for number, task in enumerate(tasks)]
        waiting = set(results)
        while waiting:
            done, waiting = concurrent.futures.wait(
                waiting, REPORT_SECONDS, concurrent.futures.FIRST_COMPLETED
            )
            for result in done:
                result.result()
            report(sum(shared[:-1]))
        return [result.result() for result in results]
    except concurrent.futures.process.BrokenProcessPool:
        raise failures.BadInput(
            "a worker process was killed, perhaps for want of memory; run the same command with "
            f"fewer than {processes} --workers, finished shards are kept."
        ) from None
    finally:
        shared[-1] = 1
        pool.shutdown(cancel_futures=True)


_shared: "ctypes.Array[ctypes.c_uint64]"


def _enter(shared: "ctypes.Array[ctypes.c_uint64]") -> None:
    global _shared
    _shared = shared
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _call(work: Callable[[Task, Tick], Result], task: Task, number: int) -> Result:
    def tick() -> None:
        if _shared[-1]:
            raise Stopped
        _shared[number] += 1

    return work(task, tick)
