"""Where tests start processes and wait for them; none of them outlives its `with` block."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import psutil
from support import ports

TOP = pathlib.Path(__file__).parents[2]
# Ends a test that hangs. It measures no behaviour: a busy machine is slow, not wrong.
PATIENCE_SECONDS = 900


def wait_until(condition, what, timeout=PATIENCE_SECONDS, errors=()):
    """Calls `condition` until it gives something true, and returns that.

    Args:
        condition: a function without arguments.
        what: is waited for; a function, such as `Process.said`, is called when the test fails.
        timeout: in seconds, after which the test fails.
        errors: of `condition`, which mean "not yet".
    """
    limit = time.monotonic() + timeout
    while True:
        problem = None
        try:
            if value := condition():
                return value
        except errors as error:
            problem = error
        if time.monotonic() > limit:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {timeout} s: {text}") from problem
        time.sleep(0.01)


def wait_in(processes, condition):
    """Waits for a condition of a process or a group, whose end before that fails the test."""

    def met():
        assert processes.running(), processes.said()
        return condition()

    wait_until(met, processes.said)


def environment(devices=1, **variables):
    """This process's environment, for a program on so many CPU devices."""
    cpus = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return {**os.environ, **cpus, "PYTHONUNBUFFERED": "1", **variables}


def module_path(*folders):
    """PYTHONPATH of a program that imports `support`, and of modules in more folders."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([*map(str, (*folders, TOP, TOP / "tests")), *([given] if given else [])])


class Process(subprocess.Popen):
    """A program in a session of its own; leaving the `with` block kills it and its descendants."""

    def __init__(self, command, *, folder=TOP, environment=None, output=None, apart=False, **more):
        """Starts it.

        Args:
            command: words, or one line for the shell.
            folder: to start in.
            environment: all variables; None for those of this process.
            output: a file for all that it prints; None to keep that for `said`.
            apart: keeps stderr for `complained`, apart from stdout.
            more: arguments of subprocess.Popen.
        """
        self._files = [tempfile.TemporaryFile() for _ in range(1 + apart)]  # noqa: SIM115
        line = ["sh", "-c", command] if isinstance(command, str) else list(map(str, command))
        super().__init__(
            line,
            cwd=folder,
            env=environment,
            stdout=output or self._files[0],
            stderr=self._files[1] if apart and not output else subprocess.STDOUT,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **more},
        )

    def __exit__(self, *_):
        descendants = self.descendants()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        super().wait()
        for file in self._files:
            file.close()

    def said(self):
        """All that it has printed so far."""
        return _text(self._files[0])

    def complained(self):
        """All that it has printed to stderr so far, if that is kept apart."""
        return _text(self._files[1])

    def running(self):
        return self.poll() is None

    def descendants(self):
        """psutil's processes; none once it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def wait(self, timeout=PATIENCE_SECONDS):
        """Its exit code, negative for a signal."""
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout} s: {self.said()}") from None


def run(command, *, timeout=PATIENCE_SECONDS, succeeds=False, **more):
    """Runs a program to its end: returncode, stdout, stderr.

    Args:
        command: as of `Process`.
        timeout: in seconds, after which the test fails.
        succeeds: whether the test fails, with all that was printed, unless the exit code is 0.
        more: arguments of `Process`.
    """
    with Process(command, apart=True, **more) as process:
        code = process.wait(timeout)
        assert not (succeeds and code), process.said() + process.complained()
        return subprocess.CompletedProcess(command, code, process.said(), process.complained())


def python(*arguments, **more):
    """Runs this Python to its end, as `run` does."""
    return run([sys.executable, *arguments], **more)


class Group:
    """Processes that belong together; the `with` block leaves none of them behind.

    Attributes:
        processes: by number.
    """

    def __init__(self, commands, **more):
        """Starts one process a command; `more` are arguments of `Process`."""
        self.processes = [Process(command, **more) for command in commands]

    @classmethod
    def of(cls, count, command, **more):
        """One command in `count` processes, each with the flags by which it finds the others."""
        return cls([[*command, *flags] for flags in peers(count)], **more)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.ExitStack() as stack:
            for process in self.processes:
                stack.enter_context(process)

    def said(self):
        """All that they have printed so far, one process after the other."""
        return "\n".join(process.said() for process in self.processes)

    def running(self):
        return any(process.running() for process in self.processes)

    def wait_for(self, text):
        """Until all have said it."""
        wait_in(self, lambda: all(text in process.said() for process in self.processes))

    def ended(self, but=()):
        """Whether all have ended, those with the numbers `but` aside."""
        return not any(
            process.running() for index, process in enumerate(self.processes) if index not in but
        )

    def wait(self, timeout=PATIENCE_SECONDS):
        """Exit codes of all, negative for signals."""
        wait_until(self.ended, self.said, timeout)
        return self.codes()

    def codes(self):
        """Exit codes, None for those that run."""
        return [process.poll() for process in self.processes]


def peers(count, host="127.0.0.1"):
    """For each process of a run the flags by which it finds the others."""
    coordinator = f"--coordinator={host}:{ports.free()}"
    return [
        [coordinator, f"--num_processes={count}", f"--process_id={index}"] for index in range(count)
    ]


def _text(file):
    # Its offset belongs to the process, too, so nothing is moved.
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")
