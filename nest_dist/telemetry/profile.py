"""Traces of a few steps for TensorBoard's profiler, planned or requested during the run."""

import pathlib
import shutil
import socket
from collections.abc import Callable

import jax

from nest_dist.base import scratch
from nest_dist.cluster import processes, stop_signals
from nest_dist.telemetry import records

REQUEST = "profile"  # a file of this name in the folder of the run requests a trace
TRACES = "tensorboard/plugins/profile"
# Every step ends with a collective, so no process is this many steps ahead of another.
STEPS_APART = 8


class Profiler:
    """Traces the same steps on every process; a context manager.

    SIGUSR1 to any process, or a file named `profile` in the folder of the run, requests a trace.
    """

    def __init__(
        self,
        first_step: int | None,
        num_steps: int,
        workdir: pathlib.Path,
        look_every: int,
        done: Callable[[str], None],
    ) -> None:
        """Plans the first trace.

        Args:
            first_step: of a planned trace; None traces only on request.
            workdir: folder of requests, and of the traces for TensorBoard.
            look_every: steps between two checks for requests of any process.
        """
        self._planned, self._num_steps = first_step, num_steps
        self._request, self._traces = workdir / REQUEST, workdir / TRACES
        self._look_every, self._done = look_every, done
        self._tracing: tuple[int, scratch.Scratch] | None = None  # its first step, its folder
        self._last_step = 0
        self._requests = 0

    def before_step(self, step: int, wait: Callable[[], None]) -> None:
        """Starts or ends a trace when it is due; call it before every step.

        Args:
            wait: returns when the devices have finished the steps before it.
        """
        if self._tracing and step >= self._tracing[0] + self._num_steps:
            wait()
            self._end()
        self._last_step = step
        if step % self._look_every == 0:
            self._look(step)
        if self._planned is not None and step >= self._planned:
            self._planned = None
            if not self._tracing:
                wait()
                self._begin(step)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Ends the trace under way; after an error there is none."""
        if self._tracing and error_type is None:
            self._end()
        elif self._tracing:
            self._tracing[1].remove()

    def _look(self, step: int) -> None:
        requested = stop_signals.trace_requested()
        if processes.is_primary() and self._request.is_file():
            with records.tolerated(self._request):
                self._request.unlink()
                requested = True
        name = f"profile/{self._requests}"
        if requested:
            # Every process checks for requests again before that step.
            processes.publish(name, str(step + self._look_every + STEPS_APART))
        if planned := processes.published(name):
            self._requests += 1
            self._planned = int(planned)

    def _begin(self, step: int) -> None:
        # Not directly into TensorBoard's folder: processes of one host would write the same file.
        local = scratch.Scratch()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a trace of Python's calls would slow down the steps
        jax.profiler.start_trace(local.folder, profiler_options=options)
        self._tracing = (step, local)

    def _end(self) -> None:
        assert self._tracing
        (first_step, local), self._tracing = self._tracing, None
        jax.profiler.stop_trace()
        target = self._traces / f"steps_{first_step}_to_{self._last_step}"
        with records.tolerated(self._traces):
            target.mkdir(parents=True, exist_ok=True)
            for trace in local.folder.rglob("*.xplane.pb"):
                name = f"{socket.gethostname()}_{jax.process_index()}.xplane.pb"
                shutil.move(trace, target / name)
            self._done(f"traced steps {first_step} to {self._last_step}: {target}")
        local.remove()
