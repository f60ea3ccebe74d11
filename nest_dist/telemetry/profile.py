"""Traces of a few steps for TensorBoard's profiler, planned or asked for while the run goes on."""

import pathlib
import shutil
import signal
import socket
import tempfile
import types
from collections.abc import Callable

import jax

from nest_dist.parallel import hosts

REQUEST = "profile"  # a file of this name in the folder of the run asks for a trace now
TRACES = "tensorboard/plugins/profile"
# Every step ends with a collective, so no process is so many steps ahead of another.
STEPS_APART = 8


class Profiler:
    """Traces the same steps on every process.

    A context manager. SIGUSR1 to any process, or a file named `profile` in the folder of the run,
    asks for a trace; the processes look for requests, their own and each other's, every so many
    steps.
    """

    def __init__(
        self,
        first_step: int | None,
        num_steps: int,
        workdir: pathlib.Path,
        look_every: int,
        done: Callable[[str], None],
    ) -> None:
        """Takes over SIGUSR1.

        Args:
            first_step: of a trace that is planned; None traces only when asked.
            num_steps: of a trace.
            workdir: where requests are found, and where TensorBoard finds traces.
            look_every: steps between two looks for requests.
            done: is told of a trace.
        """
        self._planned, self._num_steps = first_step, num_steps
        self._request, self._traces = workdir / REQUEST, workdir / TRACES
        self._look_every, self._done = look_every, done
        self._tracing: tuple[int, pathlib.Path] | None = None  # since which step, where
        self._last_step = 0
        self._asked = False
        self._requests = 0
        self._handler = signal.signal(signal.SIGUSR1, self._ask)

    def before_step(self, step: int, wait: Callable[[], None]) -> None:
        """Starts or ends a trace if it is time; to be called before every step.

        Args:
            step: the one that follows.
            wait: returns when the devices have done all before it.
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

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: types.TracebackType | None,
    ) -> None:
        """Ends a trace with the run, and gives up the signal."""
        signal.signal(signal.SIGUSR1, self._handler)
        if self._tracing and error_type is None:
            self._end()

    def _look(self, step: int) -> None:
        if hosts.lead() and self._request.exists():
            self._request.unlink()
            self._asked = True
        name = f"profile/{self._requests}"
        if self._asked:
            self._asked = False
            # Until then every process has looked again.
            hosts.announce(name, str(step + self._look_every + STEPS_APART))
        if planned := hosts.announced(name):
            self._requests += 1
            self._planned = int(planned)

    def _begin(self, step: int) -> None:
        # Not straight into TensorBoard's folder: processes of one host would write the same file.
        folder = pathlib.Path(tempfile.mkdtemp(prefix="nest_dist_profile_"))
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a trace of Python's calls would slow down the steps
        jax.profiler.start_trace(folder, profiler_options=options)
        self._tracing = (step, folder)

    def _end(self) -> None:
        assert self._tracing
        first_step, folder = self._tracing
        self._tracing = None
        jax.profiler.stop_trace()
        name = f"steps_{first_step}_to_{self._last_step}"
        (self._traces / name).mkdir(parents=True, exist_ok=True)
        for trace in folder.rglob("*.xplane.pb"):
            place = f"{socket.gethostname()}_{jax.process_index()}.xplane.pb"
            shutil.move(trace, self._traces / name / place)
        shutil.rmtree(folder)
        self._done(f"traced steps {first_step} to {self._last_step}: {self._traces / name}")

    def _ask(self, _signal: int, _frame: types.FrameType | None) -> None:
        self._asked = True
