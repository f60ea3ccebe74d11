"""Does every harm to small runs, and shows what became of them.

    .venv/bin/python tests/faults/chaos.py --rounds=50 --seed=0

Each round harms a run of two or four processes in one way, waits until every process has ended,
and starts the run again; the next round harms that. After five rounds the run is left in peace
until it is done, and its parameters are compared with those of a run that nobody disturbed. Ends
with status 1 if a round lost more than it may, a process had not ended in time, or a bit differs.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from support import cluster, commands

from nest_dist.checkpointing import digests, manager

BINDINGS = (
    "Run.save_every_epochs = 0.4",
    "Run.evaluate_every_epochs = 1",
    "Run.stuck_seconds = 20",
    "TrainingData.source = @Stalling()",
    "Stalling.source = @train/Digits()",
)
STEPS_AN_EPOCH = 45
# Each comes within 30 steps after the newest checkpoint, and a run has an epoch for each and one
# more, so that there are steps left for all.
FAULTS_A_RUN = 5
# Every process must have ended so long after the fault.
END_SECONDS = 60
# Getting there on a busy machine is another matter.
PATIENCE_SECONDS = 900
# How long processes wait for one that was stopped before all had met.
MEETING_SECONDS = 40
# Of about the first two saves that a run makes, on process 0 and on another.
WRITES = (20, 4)
DISK_BYTES = 64 << 20


@dataclasses.dataclass
class Run:
    """One run in its folder, and how its processes are started."""

    workdir: pathlib.Path
    count: int
    epochs: int
    rng: random.Random
    hosts: cluster.Namespaces | None = None
    prefix: tuple[str, ...] = ()

    @property
    def stall(self) -> pathlib.Path:
        """While this file is there, no data comes."""
        return self.workdir / "stall"

    def start(self, *flags: str, **environment: str) -> cluster.Cluster:
        """Starts its processes, with more flags and variables."""
        self.workdir.mkdir(exist_ok=True)
        tests = pathlib.Path(__file__).parents[1]
        path = os.pathsep.join(map(str, (tests, tests / "support" / "sabotage")))
        all_flags = [
            "--gin_bindings=import support.stalling",
            *commands.tiny_flags(self.workdir, *BINDINGS, f"Run.num_epochs = {self.epochs}"),
            *flags,
        ]
        environment |= {"PYTHONPATH": path, "STALL": str(self.stall)}
        return cluster.Cluster(
            self.count, self.workdir, all_flags, environment, self.hosts, self.prefix
        )

    def whole(self) -> list[int]:
        """The steps of checkpoints that are whole."""
        folder = self.workdir / "checkpoints"
        if not folder.exists():
            return []
        found = manager.Manager(folder, keep=None)
        steps = [
            step
            for step in found.steps()
            if not digests.problem(manager.epath.Path(folder / str(step)))
        ]
        found.close()
        return steps

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
        lost: steps that have to be done again.
        wrong: what should not be; empty if all is well.
    """

    fault: str
    at: int
    codes: list[int | None]
    seconds: float
    begun: bool
    lost: int = 0
    wrong: str = ""


Fault = Callable[[Run], Round]


def _at_a_step(name: str, codes: set[int], harm: Callable[[Run, cluster.Cluster, int], object]):
    """A fault that is done to one process of a run at a random step."""

    def fault(run: Run) -> Round:
        victim = run.rng.randrange(run.count)
        newest = run.newest()
        step = newest + run.rng.randrange(1, 30)
        with run.start() as processes:
            if not processes.wait_for_step(run.workdir, step, PATIENCE_SECONDS):
                return _round(f"{name} {victim}", step, processes, 0, "ended before the fault")
            began = time.monotonic()
            with contextlib.ExitStack() as after:
                undo = harm(run, processes, victim)
                if callable(undo):
                    after.callback(undo)
                frozen = [victim] if name == "freeze" else []
                in_time = processes.wait(END_SECONDS, but=frozen)
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
    name: str, step: int, processes: cluster.Cluster, seconds: float, wrong: str = ""
) -> Round:
    return Round(name, step, processes.codes(), seconds, processes.begun(), wrong=wrong)


def _kill(run: Run, processes: cluster.Cluster, victim: int) -> None:
    processes.processes[victim].kill()


def _terminate(run: Run, processes: cluster.Cluster, victim: int) -> None:
    processes.processes[victim].terminate()


def _freeze(run: Run, processes: cluster.Cluster, victim: int) -> None:
    processes.processes[victim].send_signal(signal.SIGSTOP)


def _stall(run: Run, processes: cluster.Cluster, victim: int) -> Callable[[], None]:
    run.stall.touch()
    return run.stall.unlink


def _terminate_in_stall(run: Run, processes: cluster.Cluster, victim: int) -> Callable[[], None]:
    run.stall.touch()
    time.sleep(3)
    processes.processes[victim].terminate()
    return run.stall.unlink


def _fill_disk(run: Run, processes: cluster.Cluster, victim: int) -> Callable[[], None]:
    ballast = run.workdir / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    return ballast.unlink


def _change_owner(run: Run, processes: cluster.Cluster, victim: int) -> Callable[[], None]:
    folder = run.workdir / "checkpoints"
    os.chown(folder, 65534, 65534)
    return lambda: os.chown(folder, 0, 0)


def _cut_link(run: Run, processes: cluster.Cluster, victim: int) -> Callable[[], None]:
    assert run.hosts is not None
    run.hosts.cut(victim)
    return lambda: run.hosts.heal(victim)


def _in_a_save(name: str, number: int, codes: set[int]) -> Fault:
    """A process is sent a signal at one of the writes of a checkpoint."""

    def fault(run: Run) -> Round:
        victim = run.rng.randrange(run.count)
        write = run.rng.randrange(1, WRITES[min(victim, 1)] + 1)
        done = f"{name} {victim} at write {write} of a save"
        with run.start(NEST_DIST_SIGNAL=f"{number} {victim} {write}") as processes:
            while not processes.look() and "sabotage:" not in processes.said():
                if time.monotonic() - processes.started > PATIENCE_SECONDS:
                    return _round(done, run.reached(), processes, 0, "the write never came")
                time.sleep(0.02)
            began = time.monotonic()
            in_time = processes.wait(END_SECONDS)
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
        in_time = processes.wait(END_SECONDS)
        seconds = time.monotonic() - began
        codes = processes.codes()
        wrong = "" if in_time else f"a process had not ended\n{processes.said()}"
        # Before Python can listen, the signal ends the process; the others then wait in vain.
        expected = {76} if codes[victim] != -signal.SIGTERM else {-signal.SIGTERM, 2}
        if in_time and not set(codes) <= expected:
            wrong = f"unexpected exit codes {codes}\n{processes.said()}"
        return _round(f"terminate {victim} at the start", run.reached(), processes, seconds, wrong)


def damage(run: Run) -> Round:
    """Kills the run, then changes, cuts or removes a file of the newest checkpoint."""
    found = _at_a_step("kill", {75, 134, -6, -9, 0}, _kill)(run)
    steps = run.whole()
    if not steps or found.wrong:
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


# 134 and -6 are JAX's own end; it may be faster than the watch when process 0 is gone.
FAULTS: dict[str, Fault] = {
    "kill": _at_a_step("kill", {75, 134, -6, -9}, _kill),
    "kill in a save": _in_a_save("kill", signal.SIGKILL, {75, 134, -6, -9}),
    "damage": damage,
    "terminate": _at_a_step("terminate", {76}, _terminate),
    "terminate in a save": _in_a_save("terminate", signal.SIGTERM, {76}),
    "terminate at the start": terminate_at_start,
    "terminate in a data stall": _at_a_step("terminate in a stall", {76}, _terminate_in_stall),
    "data stall": _at_a_step("stall", {75}, _stall),
    "freeze": _at_a_step("freeze", {75, 134, -6}, _freeze),
    "full disk": _at_a_step("fill the disk", {1}, _fill_disk),
    "changed owner": _at_a_step("change the owner", {1}, _change_owner),
    "cut link": _at_a_step("cut the link of", {75, 134, -6}, _cut_link),
}


def disturbed(run: Run, faults: list[str]) -> list[Round]:
    """Does faults to a run, one after the other, and lets it come to its end."""
    rounds = []
    for name in faults:
        found = FAULTS[name](run)
        expected = run.newest()
        found.lost = max(0, run.reached() - expected) if found.begun else 0
        rounds.append(found)
        if found.lost and name.startswith("terminate") and not found.wrong:
            found.wrong = "a stop that was asked for lost steps"
        if found.wrong:
            return rounds
    with run.start() as processes:
        if not processes.wait(PATIENCE_SECONDS) or set(processes.codes()) != {0}:
            rounds[-1].wrong = f"the run did not come to its end\n{processes.said()}"
        elif expected and f"resuming after step {expected}," not in processes.said():
            rounds[-1].wrong = f"did not resume after step {expected}\n{processes.said()}"
    steps = [line["step"] for line in commands.metrics(run.workdir) if "train/loss" in line]
    if not rounds[-1].wrong and steps != list(range(1, run.epochs * STEPS_AN_EPOCH + 1)):
        rounds[-1].wrong = "a step is missing or stands twice in metrics.jsonl"
    return rounds


def possible(hosts: cluster.Namespaces | None) -> list[str]:
    """The faults that this machine allows."""
    found = [name for name in FAULTS if name not in ("full disk", "changed owner", "cut link")]
    if hosts is not None:
        found.append("cut link")
    if os.getuid() == 0 and shutil.which("setpriv"):
        found.append("changed owner")
    if _small_disk_allowed():
        found.append("full disk")
    return found


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
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(folder: pathlib.Path) -> None:
    options = f"size={DISK_BYTES}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    subprocess.run(command, check=True, capture_output=True)


def _small_disk_allowed() -> bool:
    if os.getuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount(pathlib.Path(folder))
        except subprocess.CalledProcessError:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def owner_matters() -> tuple[str, ...]:
    """What a command is prefixed with so that permissions hold for root, too."""
    if os.getuid() == 0 and shutil.which("setpriv"):
        return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    return ()


def main() -> None:
    """Runs the rounds and shows the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, help="for the runs; else a temporary one")
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    with contextlib.ExitStack() as stack:
        folder = flags.folder or pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos"))
        )
        hosts = None
        if cluster.namespaces_allowed():
            hosts = stack.enter_context(cluster.Namespaces(4))
        failed = rounds_done(flags.rounds, rng, folder, hosts)
    sys.exit(1 if failed else 0)


def dealt(names: list[str], rounds: int, rng: random.Random) -> Iterator[list[str]]:
    """The faults of one run after the other; every fault comes equally often, give or take one."""
    deck: list[str] = []
    while rounds > 0:
        hand: list[str] = []
        while len(hand) < min(FAULTS_A_RUN, rounds):
            if not deck:
                deck = rng.sample(names, len(names))
            hand.append(deck.pop())
        rounds -= len(hand)
        yield hand


def rounds_done(
    rounds: int, rng: random.Random, folder: pathlib.Path, hosts: cluster.Namespaces | None
) -> int:
    """Does so many rounds and shows a line for each, and at last one for each fault.

    Returns:
        How many went wrong.
    """
    epochs = min(rounds, FAULTS_A_RUN) + 1
    expected: dict[int, dict] = {}
    by_fault: dict[str, list[Round]] = {}
    failed = 0
    print("round  processes  step  lost  seconds  exit codes            same bits  what was done")
    for faults in dealt(possible(hosts), rounds, rng):
        count = rng.choice([2, 2, 2, 4])
        apart = hosts if "cut link" in faults or rng.random() < 0.2 else None
        if count not in expected:
            expected[count] = _undisturbed(folder / f"undisturbed_{count}", count, epochs)
        done = sum(map(len, by_fault.values()))
        with small_disk(folder / f"run_{done}") as workdir:
            run = Run(workdir, count, epochs, rng, apart, owner_matters())
            found = disturbed(run, faults)
            equal = "unknown"
            if not found[-1].wrong:
                equal = "no"
                with contextlib.suppress(AssertionError):
                    commands.assert_same_bits(commands.arrays(workdir), expected[count])
                    equal = "yes"
        for fault, each in zip(faults, found, strict=False):
            each.wrong = each.wrong or ("the run ended with other bits" if equal == "no" else "")
            by_fault.setdefault(fault, []).append(each)
            failed += bool(each.wrong)
            done += 1
            where = f"{count}" + (" hosts" if apart else "")
            print(
                f"{done:5}  {where:9}  {each.at:4}  {each.lost:4}  {each.seconds:7.1f}  "
                f"{' '.join(map(str, each.codes)):20}  {equal:9}  {each.fault}"
                + (f"  WRONG: {each.wrong}" if each.wrong else ""),
                flush=True,
            )
        shutil.rmtree(folder / f"run_{done - len(found)}", ignore_errors=True)
    print("\n| fault | rounds | wrong | steps to be done again | seconds until all had ended |")
    print("|---|---|---|---|---|")
    for name, each in sorted(by_fault.items()):
        wrong, lost = sum(bool(it.wrong) for it in each), max(it.lost for it in each)
        slowest = max(it.seconds for it in each)
        print(f"| {name} | {len(each)} | {wrong} | at most {lost} | at most {slowest:.1f} |")
    print(f"{sum(map(len, by_fault.values()))} rounds, {failed} went wrong")
    return failed


def _undisturbed(workdir: pathlib.Path, count: int, epochs: int) -> dict:
    run = Run(workdir, count, epochs, random.Random(0))
    with run.start() as processes:
        assert processes.wait(PATIENCE_SECONDS), processes.said()
        assert set(processes.codes()) == {0}, processes.said()
    return commands.arrays(workdir)


if __name__ == "__main__":
    main()
