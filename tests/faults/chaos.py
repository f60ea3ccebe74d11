"""Injects every kind of fault into small runs, and shows what became of them.

    .venv/bin/python tests/faults/chaos.py --rounds=50 --seed=0
    .venv/bin/python tests/faults/chaos.py --rounds=1000 --results=rounds.jsonl

Each round injects a fault into a run of two or four processes, waits until every process has ended,
and starts the run again; the next round takes that. After five rounds the run is left in peace
until it is done, and its parameters are compared with those of a run that nobody disturbed. Ends
with status 1 if a round lost more than it may, a process had not ended in time, or a bit differs.

With `--results` the rounds are kept in a file, a line each, and the same command goes on after
those that are there.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from faults import injections
from support import commands, network

# Each comes within 30 steps after the newest checkpoint, and a run has an epoch for each and one
# more, so that there are steps left for all.
FAULTS_A_RUN = 5


def main() -> None:
    """Does the rounds and shows the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    seed = os.environ.get("NEST_DIST_TEST_SEED", "0")
    parser.add_argument("--seed", type=int, default=int(seed))
    parser.add_argument("--only", action="append", help="a fault; repeatable, else all")
    parser.add_argument("--folder", type=pathlib.Path, help="for the runs; else a temporary one")
    parser.add_argument("--results", type=pathlib.Path, help="a file of rounds, to go on with")
    flags = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = flags.folder or pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos"))
        )
        hosts = stack.enter_context(network.Hosts(4)) if network.allowed() else None
        possible = injections.possible(hosts)
        for name in injections.FAULTS.keys() - possible:
            print(f"left out: {name}; run as root where disks and network namespaces can be made")
        names = [name for name in possible if name in (flags.only or injections.FAULTS)]
        rounds = rounds_of(flags.results)
        show_head()
        for number, faults in enumerate(dealt(names, flags.rounds, random.Random(flags.seed))):
            if number not in {done["run"] for done in rounds}:
                rng = random.Random(f"{flags.seed}/{number}")
                done = one_run(number, faults, rng, folder, hosts)
                rounds += done
                keep(flags.results, done)
    show_tables(rounds)
    sys.exit(1 if any(done["wrong"] for done in rounds) else 0)


def dealt(names: list[str], rounds: int, rng: random.Random) -> Iterator[list[str]]:
    """The faults of one run after the other; every fault comes equally often, give or take one.

    With more rounds the first runs are the same.
    """
    deck: list[str] = []
    while rounds > 0:
        hand: list[str] = []
        while len(hand) < min(FAULTS_A_RUN, rounds):
            if not deck:
                deck = rng.sample(names, len(names))
            hand.append(deck.pop())
        rounds -= len(hand)
        yield hand


def rounds_of(results: pathlib.Path | None) -> list[dict]:
    """The rounds that are in the file, whole runs only."""
    if results is None or not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def keep(results: pathlib.Path | None, done: list[dict]) -> None:
    """Adds the rounds of one run to the file at once, so that it has whole runs only."""
    if results is not None:
        with results.open("a") as file:
            file.write("".join(json.dumps(each) + "\n" for each in done))


def one_run(
    number: int,
    faults: list[str],
    rng: random.Random,
    folder: pathlib.Path,
    hosts: network.Hosts | None,
) -> list[dict]:
    """The rounds of one run, each shown in a line; compares its parameters at the end."""
    count, epochs = rng.choice([2, 2, 2, 4]), FAULTS_A_RUN + 1
    apart = hosts if "cut link" in faults or rng.random() < 0.2 else None
    undisturbed = folder / f"undisturbed_{count}"
    if not undisturbed.exists():
        injections.undisturbed(undisturbed, count, epochs)
    with injections.small_disk(folder / f"run_{number}") as workdir:
        prefix = injections.owner_matters()
        rounds = disturbed(injections.Run(workdir, count, epochs, rng, apart, prefix), faults)
        same = "unknown"
        if not rounds[-1].wrong:
            same = "no"
            with contextlib.suppress(AssertionError):
                commands.assert_same_bits(commands.arrays(workdir), commands.arrays(undisturbed))
                same = "yes"
    shutil.rmtree(folder / f"run_{number}", ignore_errors=True)
    done = []
    for kind, each in zip(faults, rounds, strict=False):
        each.wrong = each.wrong or ("the run ended with other bits" if same == "no" else "")
        processes = f"{count}" + (" hosts" if apart else "")
        done.append(
            {
                "run": number,
                "kind": kind,
                "processes": processes,
                "same_bits": same,
                **dataclasses.asdict(each),
            }
        )
        show(done[-1])
    return done


def disturbed(run: injections.Run, faults: list[str]) -> list[injections.Round]:
    """Injects faults into a run, one after the other, and lets it come to its end."""
    rounds: list[injections.Round] = []
    for name in faults:
        done = injections.FAULTS[name](run)
        if rounds:
            rounds[-1].restart = done.start
        expected = run.newest()
        done.lost = max(0, run.reached() - expected) if done.begun else 0
        rounds.append(done)
        stalled = name == "terminate in a data stall"  # others may have begun a step
        if done.lost and name.startswith("terminate") and not stalled and not done.wrong:
            done.wrong = "a stop that was asked for lost steps"
        if done.wrong:
            return rounds
    with run.start() as processes:
        codes = processes.wait()
        rounds[-1].restart = injections.seconds_of_start(processes)
        if set(codes) != {0}:
            rounds[-1].wrong = f"the run did not come to its end\n{processes.said()}"
        elif expected and f"resuming after step {expected}," not in processes.said():
            rounds[-1].wrong = f"did not resume after step {expected}\n{processes.said()}"
    steps = [line["step"] for line in commands.metrics(run.workdir) if "train/loss" in line]
    records_kept = not {"records damaged", "power cut"} & set(faults)
    if (
        not rounds[-1].wrong
        and records_kept
        and steps != list(range(1, run.epochs * injections.STEPS_AN_EPOCH + 1))
    ):
        rounds[-1].wrong = "a step is missing or stands twice in metrics.jsonl"
    return rounds


def show_head() -> None:
    print(" run  processes  step  lost  seconds  exit codes            same bits  what was done")


def show(done: dict) -> None:
    """One round as a line."""
    print(
        f"{done['run']:4}  {done['processes']:9}  {done['at']:4}  {done['lost']:4}  "
        f"{done['seconds']:7.1f}  {' '.join(map(str, done['codes'])):20}  "
        f"{done['same_bits']:9}  {done['fault']}"
        + (f"  WRONG: {done['wrong']}" if done["wrong"] else ""),
        flush=True,
    )


def show_tables(rounds: list[dict]) -> None:
    """What became of the rounds, by kind of fault; and where the time of a restart goes."""
    by_kind = collections.defaultdict(list)
    for done in rounds:
        by_kind[done["kind"]].append(done)
    print(
        "\n| fault | rounds | wrong | steps to be done again | seconds until all had ended "
        "| seconds to the next step |\n|---|---|---|---|---|---|"
    )
    for kind, each in sorted(by_kind.items()):
        wrong, lost = sum(bool(it["wrong"]) for it in each), max(it["lost"] for it in each)
        print(
            f"| {kind} | {len(each)} | {wrong} | at most {lost} "
            f"| {_of([it['seconds'] for it in each])} "
            f"| {_of([it['seconds'] + _own(it) for it in each if it['restart']])} |"
        )
    restarts = [done["restart"] for done in rounds if done["restart"]]
    print("\n| a restart's seconds | median | at most |\n|---|---|---|")
    for cause in dict.fromkeys(cause for restart in restarts for cause in restart):
        seconds = [restart.get(cause, 0.0) for restart in restarts]
        if cause != "down":
            print(f"| {cause} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    print(f"{len(rounds)} rounds, {sum(bool(done['wrong']) for done in rounds)} went wrong")


def _own(done: dict) -> float:
    """Seconds from a restart to its first step."""
    return sum(seconds for cause, seconds in done["restart"].items() if cause != "down")


def _of(seconds: list[float]) -> str:
    if not seconds:
        return ""
    return f"{statistics.median(seconds):.1f}, at most {max(seconds):.1f}"


if __name__ == "__main__":
    main()
