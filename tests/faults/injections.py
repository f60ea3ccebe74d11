"""Faults of small runs in several processes: `chaos.py` injects them, one function for each."""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator

from support import commands, harness, network

from nest_dist.checkpointing import reader

BINDINGS = (
    *commands.ONE_LEVEL,
    "Cadence.save_every_epochs = 0.4",
    "Evaluation.every_epochs = 1",
    "Watch.stuck_seconds = 40",
    "TrainingData.source = @train/Stalling()",
    "train/Stalling.source = @train/Digits()",
    "EvaluationData.source = @evaluate/Stalling()",
    "evaluate/Stalling.source = @evaluate/Digits()",
    "evaluate/Stalling.name = '_evaluation'",
)
WORKERS = "--gin_bindings=TrainingData.workers = 1"
STEPS_AN_EPOCH = 45
# Every process must have ended so long after the fault.
END_SECONDS = 60
# How long processes wait for one that was stopped before all had met.
MEETING_SECONDS = 40
SECRET = "that of runs on hosts of their own"
# Of about the first two saves that a run makes, on process 0 and on another.
WRITES = (20, 4)
DISK_BYTES = 64 << 20
# Longer than a process may be silent.
SUSPENDED_SECONDS = 43
LATE_SECONDS = 15


@dataclasses.dataclass
class Run:
    """One run in its folder, and how its processes are started."""

    workdir: pathlib.Path
    count: int
    epochs: int
    rng: random.Random
    hosts: network.Hosts | None = None
    prefix: tuple[str, ...] = ()

    @property
    def stall(self) -> pathlib.Path:
        """While this file is there, no training data comes."""
        return self.workdir / "stall"

    @property
    def evaluation_stall(self) -> pathlib.Path:
        """The same for the evaluation."""
        return self.workdir / "stall_evaluation"

    def start(self, *flags: str, **variables: str) -> harness.Group:
        """Starts its processes, with more flags and variables."""
        self.workdir.mkdir(exist_ok=True)
        sabotage = pathlib.Path(__file__).parents[1] / "support" / "sabotage"
        program = [
            *(*self.prefix, *commands.NEST_DIST, "train"),
            "--gin_bindings=import support.stalling",
            *commands.tiny_flags(self.workdir, *BINDINGS, f"Run.num_epochs = {self.epochs}"),
            *flags,
        ]
        peers = harness.peers(self.count, *(self.hosts.addresses[:1] if self.hosts else ()))
        environment = harness.environment(
            PYTHONPATH=harness.module_path(sabotage),
            # What is compiled is small, and compiled often.
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
            STALL=str(self.stall),
            NEST_DIST_SECRET=SECRET,
            **variables,
        )
        return harness.Group(
            [
                [*(self.hosts.inside(index) if self.hosts else ()), *program, *flags_of_peer]
                for index, flags_of_peer in enumerate(peers)
            ],
            environment=environment,
        )

    def whole(self) -> list[int]:
        """The steps of checkpoints that are whole."""
        folder = self.workdir / "checkpoints"
        if not folder.exists():
            return []
        states = {name: text for name, text, _ in reader.Reader(folder).verified()}
        return [int(name) for name, text in states.items() if text == "complete"]

    def newest(self) -> int:
        """The step that a resume must go on from."""
        return max(self.whole(), default=0)

    def reached(self) -> int:
        """The last step on record."""
        lines = commands.metrics(self.workdir)
        return max((line["step"] for line in lines), default=0)


@dataclasses.dataclass
class Round:
    """What came of a fault.

    Attributes:
        fault: what was done, and to whom.
        at: the step around which it was done.
        codes: the processes' exit codes.
        seconds: from the fault until every process had ended.
        begun: whether it came as far as to take up its last checkpoint.
        start: seconds of the start before the fault, by cause; empty if no step was done.
        lost: steps that have to be done again.
        restart: the same of the start after it.
        wrong: what should not be; empty if all is well.
    """

    fault: str
    at: int
    codes: list[int | None]
    seconds: float
    begun: bool
    start: dict[str, float] = dataclasses.field(default_factory=dict)
    lost: int = 0
    restart: dict[str, float] = dataclasses.field(default_factory=dict)
    wrong: str = ""


Fault = Callable[[Run], Round]


def _at_a_step(
    name: str,
    codes: set[int],
    harm: Callable[[Run, harness.Group, int], object],
    *flags: str,
    variables: Callable[[Run], dict[str, str]] = lambda _: {},
):
    """A fault that is done to one process of a run at a random step.

    Args:
        name: of the fault.
        codes: exit codes that may follow.
        harm: does it; may return a function that undoes it.
        flags: of the run.
        variables: of its environment.
    """

    def fault(run: Run) -> Round:
        victim = run.rng.randrange(run.count)
        newest = run.newest()
        step = newest + run.rng.randrange(1, 30)
        with run.start(*flags, **variables(run)) as processes:
            harness.wait_until(
                lambda: processes.ended() or commands.reached(run.workdir, step, processes),
                processes.said,
            )
            if processes.ended():
                return _round(
                    f"{name} {victim}",
                    step,
                    processes,
                    0,
                    f"ended before the fault\n{processes.said()}",
                )
            began = time.monotonic()
            with contextlib.ExitStack() as after:
                undo = harm(run, processes, victim)
                if callable(undo):
                    after.callback(undo)
                frozen = [victim] if name == "freeze" else []
                in_time = _all_end(processes, but=frozen)
                seconds = time.monotonic() - began
            others = [code for index, code in enumerate(processes.codes()) if index not in frozen]
            wrong = "" if in_time else f"a process had not ended\n{processes.said()}"
            unexpected = [code for code in others if code not in codes]
            if newest and f"resuming after step {newest}," not in processes.said():
                wrong = f"did not resume after step {newest}\n{processes.said()}"
            elif in_time and unexpected:
                wrong = f"unexpected exit codes {unexpected}\n{processes.said()}"
            return _round(f"{name} {victim}", step, processes, seconds, wrong)

    return fault


def _round(
    name: str, step: int, processes: harness.Group, seconds: float, wrong: str = ""
) -> Round:
    begun, start = commands.begun(processes), seconds_of_start(processes)
    return Round(name, step, processes.codes(), seconds, begun, start, wrong=wrong)


def seconds_of_start(processes: harness.Group) -> dict[str, float]:
    """From the end of the attempt before to the first step, by cause, as the run itself says."""
    line = re.search(r"first step .* s after the end of the attempt before: (.*)", processes.said())
    causes = re.findall(r"([a-z ]+) ([\d.]+)", line[1]) if line else ()
    return {cause.strip(): float(seconds) for cause, seconds in causes}


def _all_end(processes: harness.Group, but: Collection[int] = ()) -> bool:
    """Whether all processes, those with the numbers `but` aside, end in time."""
    with contextlib.suppress(AssertionError):
        return harness.wait_until(lambda: processes.ended(but), "", END_SECONDS)
    return False


def _kill(run: Run, processes: harness.Group, victim: int) -> None:
    processes.processes[victim].kill()


def _terminate(run: Run, processes: harness.Group, victim: int) -> None:
    processes.processes[victim].terminate()


def _freeze(run: Run, processes: harness.Group, victim: int) -> None:
    processes.processes[victim].send_signal(signal.SIGSTOP)


def _stall(run: Run, processes: harness.Group, victim: int) -> Callable[[], None]:
    run.stall.touch()
    return run.stall.unlink


def _terminate_in_stall(run: Run, processes: harness.Group, victim: int) -> Callable[[], None]:
    run.stall.touch()
    time.sleep(3)
    processes.processes[victim].terminate()
    return run.stall.unlink


def _fill_disk(run: Run, processes: harness.Group, victim: int) -> Callable[[], None]:
    ballast = run.workdir / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    return ballast.unlink


def _change_owner(run: Run, processes: harness.Group, victim: int) -> Callable[[], None]:
    folder = run.workdir / "checkpoints"
    os.chown(folder, 65534, 65534)
    return lambda: os.chown(folder, 0, 0)


def _cut_link(run: Run, processes: harness.Group, victim: int) -> Callable[[], None]:
    assert run.hosts is not None
    run.hosts.cut(victim)
    return lambda: run.hosts.heal(victim)


def _terminate_the_group(run: Run, processes: harness.Group, victim: int) -> None:
    os.killpg(processes.processes[victim].pid, signal.SIGTERM)


def _kill_a_worker(run: Run, processes: harness.Group, victim: int) -> None:
    workers = [
        child
        for child in processes.processes[victim].descendants()
        if "spawn_main" in " ".join(child.cmdline())
    ]
    run.rng.choice(workers).kill()


def _goes_on(harm: Callable[[Run, harness.Group, int], object]) -> Callable[..., None]:
    """Harm that must not end the run: it does some steps more, and is then asked to stop."""

    def harm_and_terminate(run: Run, processes: harness.Group, victim: int) -> None:
        harm(run, processes, victim)
        more = run.reached() + 2
        harness.wait_until(
            lambda: processes.ended() or commands.reached(run.workdir, more, processes),
            processes.said,
        )
        processes.processes[victim].terminate()

    return harm_and_terminate


def _suspend(run: Run, processes: harness.Group, victim: int) -> None:
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes.processes:
            process.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(SUSPENDED_SECONDS)


def _start_again(run: Run, processes: harness.Group, victim: int) -> None:
    slow = pathlib.Path(f"{run.stall}_slow")
    slow.write_text("0 0.2")  # all: else the run might come to its end
    with run.start("--wait_seconds=60") as second:
        assert second.wait() == [2] * run.count, second.said()
        assert "which is in use by" in second.said(), second.said()
    slow.unlink()


def _strangers(run: Run, processes: harness.Group, victim: int) -> None:
    """Sends nonsense to all ports of process 0."""
    (coordinator,) = re.findall(r"--coordinator=(\S+)", " ".join(processes.processes[0].args))
    host, port = coordinator.rsplit(":", 1)
    words = [sys.executable, "-m", "support.strangers", host, port, str(run.rng.random())]
    inside = run.hosts.inside(victim) if run.hosts else ()
    subprocess.run([*inside, *words], check=True, cwd=pathlib.Path(__file__).parents[1])


def _slow_down(run: Run, processes: harness.Group, victim: int) -> None:
    """The data of one process comes slowly, until the run says so."""
    slow = pathlib.Path(f"{run.stall}_slow")
    slow.write_text(f"{processes.processes[victim].pid} 0.2")
    named = f"process {victim} is slow: "
    harness.wait_until(lambda: processes.ended() or named in processes.said(), processes.said)
    slow.unlink()


def _set_clock(run: Run, processes: harness.Group, victim: int) -> None:
    offset = run.rng.choice([-1, 1]) * run.rng.randrange(1, 10**8)
    with (run.workdir / "clock").open("r+b") as file:
        file.write(struct.pack("q", offset))


def _settable_clock(run: Run) -> dict[str, str]:
    """The variables of processes whose wall clock differs by the seconds in a file."""
    library, clock = run.workdir / "clock.so", run.workdir / "clock"
    clock.write_bytes(bytes(4096))
    source = pathlib.Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_FILE": str(clock)}


def _before_the_first_batch(
    name: str, steps_before: int, said: str, stall: Callable[[Run], pathlib.Path]
) -> Fault:
    """SIGTERM while an iterator waits for its first batch.

    Args:
        name: of the fault.
        steps_before: how many steps are done before the data stops; 0 while it compiles.
        said: what it says when that is all it waits for.
        stall: the file that stops the data.
    """

    def fault(run: Run) -> Round:
        victim, newest = run.rng.randrange(run.count), run.newest()
        with run.start() as processes:

            def comes(text: str) -> None:
                harness.wait_until(
                    lambda: processes.ended() or text in processes.said(), processes.said
                )

            comes("compiling")
            if steps_before:
                first = newest + steps_before
                harness.wait_until(
                    lambda: processes.ended() or commands.reached(run.workdir, first, processes),
                    processes.said,
                )
            stall(run).touch()
            comes(said.format(step=(newest // STEPS_AN_EPOCH + 1) * STEPS_AN_EPOCH))
            time.sleep(2)
            processes.processes[victim].terminate()
            began = time.monotonic()
            in_time = _all_end(processes)
            seconds = time.monotonic() - began
            stall(run).unlink()
            wrong = "" if in_time and set(processes.codes()) == {76} else processes.said()
            return _round(f"{name} {victim}", run.reached(), processes, seconds, wrong)

    return fault


def slow_start(run: Run) -> Round:
    """One process comes late; the run must begin all the same."""
    late = run.rng.randrange(run.count)

    def wake(_: Run, processes: harness.Group, victim: int) -> None:
        processes.processes[victim].terminate()

    class Slow(Run):
        def start(self, *flags: str, **variables: str) -> harness.Group:
            processes = super().start(*flags, **variables)
            time.sleep(self.rng.uniform(0, 2))
            processes.processes[late].send_signal(signal.SIGSTOP)
            time.sleep(LATE_SECONDS)
            processes.processes[late].send_signal(signal.SIGCONT)
            return processes

    slow = Slow(**vars(run))
    return _at_a_step(f"{late} comes late, terminate", {76}, wake)(slow)


def lose_output(run: Run) -> Round:
    """All that the run says goes to a full disk; it must go on."""
    newest, began = run.newest(), time.time()

    def goes_on() -> bool:
        path = run.workdir / "metrics.jsonl"
        return path.exists() and path.stat().st_mtime > began and run.reached() >= newest + 3

    full = dataclasses.replace(run, prefix=("sh", "-c", 'exec "$@" >/dev/full', "-", *run.prefix))
    with full.start() as processes:
        harness.wait_until(lambda: processes.ended() or goes_on(), processes.said)
        processes.processes[0].terminate()
        began = time.monotonic()
        in_time = _all_end(processes)
        seconds = time.monotonic() - began
        wrong = "" if in_time and set(processes.codes()) == {76} else f"{processes.said()}"
        found = _round("lose the output", run.reached(), processes, seconds, wrong)
        found.begun = True
        return found


def damage_records(run: Run) -> Round:
    """Kills the run, then cuts its metrics and replaces its ledger by nonsense."""
    found = _at_a_step("kill", {75, -9}, _kill)(run)
    for name in ("metrics.jsonl", *run.rng.sample(["goodput.json", "events"], 1)):
        paths = [path for path in run.workdir.rglob(f"*{name}*") if path.is_file()]
        for path in paths:
            content = path.read_bytes()
            cut = len(content) - run.rng.randrange(1, 30)
            path.write_bytes(b"\0" * 50 if name == "goodput.json" else content[: max(0, cut)])
    found.fault += ", damage its records"
    return found


def flip_a_bit(run: Run) -> Round:
    """A bit of a parameter flips on one process; the replicas are compared every fourth step."""
    victim, newest = run.rng.randrange(run.count), run.newest()
    flags = ("--gin_bindings=import support.flipping", "Watch.compare_every_steps = 4")
    flip = f"{victim} {run.rng.randrange(1, 20)}"
    with run.start(flags[0], f"--gin_bindings={flags[1]}", FLIP=flip) as processes:
        harness.wait_until(lambda: processes.ended() or _flipped(processes), processes.said)
        began = time.monotonic()
        in_time = _all_end(processes)
        seconds = time.monotonic() - began
        wrong = "" if in_time and set(processes.codes()) == {75} else processes.said()
        if "memory or a computation is at fault" not in processes.said():
            wrong = f"nobody noticed\n{processes.said()}"
        if run.newest() > newest + 20:
            wrong = f"saved after the bit had flipped\n{processes.said()}"
        return _round(f"flip a bit on {victim}", run.reached(), processes, seconds, wrong)


def _flipped(processes: harness.Group) -> bool:
    return "flipped a bit" in processes.said()


def unreadable_storage(run: Run) -> Round:
    """A start while the checkpoints cannot be read; nothing may begin anew."""
    if not run.whole():
        return _at_a_step("kill", {75, -9}, _kill)(run)
    undo = _change_owner(run, None, 0)
    folder = run.workdir / "checkpoints"
    mode = folder.stat().st_mode
    folder.chmod(0)
    try:
        with run.start() as processes:
            began = time.monotonic()
            codes = processes.wait()
            seconds = time.monotonic() - began
            wrong = "" if set(codes) <= {2, 75} else f"{processes.said()}"
            return _round("start without readable storage", 0, processes, seconds, wrong)
    finally:
        folder.chmod(mode)
        undo()


def power_cut(run: Run) -> Round:
    """Takes the disk as it is at a moment, kills the run, and gives it that disk."""
    copy = run.workdir.with_name(f"{run.workdir.name}.copy")
    image = _image(run.workdir)

    def cut(_: Run, processes: harness.Group, victim: int) -> None:
        time.sleep(run.rng.uniform(0, 1))
        shutil.copyfile(image, copy)
        for process in processes.processes:
            process.kill()

    found = _at_a_step("cut the power of", {-9}, cut)(run)
    if found.wrong:
        return found
    subprocess.run(["umount", run.workdir], check=True)
    copy.replace(image)
    _mount(run.workdir)
    return found


def _in_a_save(name: str, number: int, codes: set[int]) -> Fault:
    """A process is sent a signal at one of the writes of a checkpoint."""

    def fault(run: Run) -> Round:
        victim = run.rng.randrange(run.count)
        write = run.rng.randrange(1, WRITES[min(victim, 1)] + 1)
        done = f"{name} {victim} at write {write} of a save"
        with run.start(NEST_DIST_SIGNAL=f"{number} {victim} {write}") as processes:
            harness.wait_until(
                lambda: processes.ended() or "sabotage:" in processes.said(),
                processes.said,
            )
            began = time.monotonic()
            in_time = _all_end(processes)
            seconds = time.monotonic() - began
            wrong = "" if in_time else f"a process had not ended\n{processes.said()}"
            if in_time and not set(processes.codes()) <= codes:
                wrong = f"unexpected exit codes {processes.codes()}\n{processes.said()}"
            return _round(done, run.reached(), processes, seconds, wrong)

    return fault


def terminate_at_start(run: Run) -> Round:
    """SIGTERM to a process that starts, restores or compiles."""
    victim = run.rng.randrange(run.count)
    with run.start(f"--wait_seconds={MEETING_SECONDS}") as processes:
        time.sleep(run.rng.uniform(0.5, 8.0))
        processes.processes[victim].terminate()
        began = time.monotonic()
        in_time = _all_end(processes)
        seconds = time.monotonic() - began
        codes = processes.codes()
        wrong = "" if in_time else f"a process had not ended\n{processes.said()}"
        # Before Python can listen, the signal ends the process; the others then wait in vain.
        expected = {76} if codes[victim] != -signal.SIGTERM else {-signal.SIGTERM, 75}
        if in_time and not set(codes) <= expected:
            wrong = f"unexpected exit codes {codes}\n{processes.said()}"
        return _round(f"terminate {victim} at the start", run.reached(), processes, seconds, wrong)


def damage(run: Run) -> Round:
    """Kills the run, then changes, cuts or removes a file of the newest checkpoint."""
    found = _at_a_step("kill", {75, -9, 0}, _kill)(run)
    steps = run.whole()
    # Without another one, the run would refuse to begin at step 0 by itself.
    if len(steps) < 2 or found.wrong:
        return found
    folder = run.workdir / "checkpoints" / str(steps[-1])
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    victim, how = run.rng.choice(files), run.rng.choice(["flip", "truncate", "remove"])
    content = bytearray(victim.read_bytes())
    if how == "flip":
        content[run.rng.randrange(len(content))] ^= 1 << run.rng.randrange(8)
        victim.write_bytes(content)
    elif how == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()
    found.fault = f"{found.fault}, {how} {victim.relative_to(run.workdir / 'checkpoints')}"
    return found


FAULTS: dict[str, Fault] = {
    "kill": _at_a_step("kill", {75, -9}, _kill),
    "kill in a save": _in_a_save("kill", signal.SIGKILL, {75, -9}),
    "damage": damage,
    "terminate": _at_a_step("terminate", {76}, _terminate),
    "terminate in a save": _in_a_save("terminate", signal.SIGTERM, {76}),
    "terminate at the start": terminate_at_start,
    "terminate in a data stall": _at_a_step("terminate in a stall", {76}, _terminate_in_stall),
    "data stall": _at_a_step("stall", {75}, _stall),
    "freeze": _at_a_step("freeze", {75}, _freeze),
    "full disk": _at_a_step("fill the disk", {75}, _fill_disk),
    "changed owner": _at_a_step("change the owner", {2, 75}, _change_owner),
    "cut link": _at_a_step("cut the link of", {75}, _cut_link),
    "terminate before the first training batch": _before_the_first_batch(
        "terminate before training,", 0, "compiled in", lambda run: run.stall
    ),
    "terminate before the first evaluation batch": _before_the_first_batch(
        "terminate before evaluation,", 1, "step {step}/", lambda run: run.evaluation_stall
    ),
    "terminate a group with workers": _at_a_step(
        "terminate the group of", {76}, _terminate_the_group, WORKERS
    ),
    "killed worker": _at_a_step("kill a worker of", {75}, _kill_a_worker, WORKERS),
    "suspension": _at_a_step("suspend all, terminate", {76}, _goes_on(_suspend)),
    "second start": _at_a_step("start again, terminate", {76}, _goes_on(_start_again)),
    # 75 where it is set back in the instant in which processes meet to save: JAX takes that for a
    # lost process, and its barrier fails.
    "clock set": _at_a_step(
        "set the clock, terminate", {75, 76}, _goes_on(_set_clock), variables=_settable_clock
    ),
    "strangers": _at_a_step("strangers, terminate", {76}, _goes_on(_strangers)),
    "slow host": _at_a_step("slow down, terminate", {76}, _goes_on(_slow_down)),
    "flipped bit": flip_a_bit,
    "slow start": slow_start,
    "lost output": lose_output,
    "records damaged": damage_records,
    "unreadable storage": unreadable_storage,
    "power cut": power_cut,
}
# What each needs of this machine, beside time.
NEEDS_ROOT = ("changed owner", "unreadable storage")
NEEDS_DISK = ("full disk", "power cut")


def possible(hosts: network.Hosts | None) -> list[str]:
    """The faults that this machine allows."""
    impossible = set() if hosts is not None else {"cut link"}
    if os.getuid() != 0 or not shutil.which("setpriv"):
        impossible |= {*NEEDS_ROOT}
    if not _small_disk_allowed():
        impossible |= {*NEEDS_DISK}
    if not shutil.which("gcc"):
        impossible.add("clock set")
    return [name for name in FAULTS if name not in impossible]


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder on a disk that is soon full, where that is allowed."""
    folder.mkdir()
    if not _small_disk_allowed():
        yield folder
        return
    _mount(folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


def _mount(folder: pathlib.Path) -> None:
    """Mounts the disk in a file beside the folder, which is made where it is not there."""
    image = _image(folder)
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)


def _image(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f"{folder.name}.disk")


def undisturbed(workdir: pathlib.Path, count: int, epochs: int) -> None:
    """The same run, from beginning to end."""
    with Run(workdir, count, epochs, random.Random(0)).start() as processes:
        codes = processes.wait()
        if set(codes) != {0}:
            raise SystemExit(f"the undisturbed run ended with {codes}\n{processes.said()}")


def _small_disk_allowed() -> bool:
    if os.getuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            (mounted := pathlib.Path(folder, "disk")).mkdir()
            _mount(mounted)
        except (subprocess.CalledProcessError, FileNotFoundError):
            return False
        subprocess.run(["umount", mounted], check=True)
    return True


def owner_matters() -> tuple[str, ...]:
    """What a command is prefixed with so that permissions hold for root, too."""
    if os.getuid() == 0 and shutil.which("setpriv"):
        return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    return ()
