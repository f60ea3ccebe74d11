"""The chaos run of README, with six rounds in place of fifty."""

import collections
import random
import re
import shlex

import pytest
from faults import chaos, injections
from support import harness, readme


def test_every_harm_comes_equally_often():
    hands = list(chaos.dealt(list(injections.FAULTS), 50, random.Random(0)))
    assert max(map(len, hands)) == chaos.FAULTS_A_RUN
    counts = collections.Counter(fault for hand in hands for fault in hand)
    assert sum(counts.values()) == 50
    assert counts.keys() == injections.FAULTS.keys()
    assert max(counts.values()) - min(counts.values()) <= 1


def run(*flags):
    _, *words = shlex.split(readme.CHAOS)
    done = harness.python(*words, *flags)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_rounds_lose_nothing():
    said = run("--rounds=6")
    rounds = re.findall(r"^ +\d+  \d.* yes .*$", said, flags=re.MULTILINE)
    assert len(rounds) == 6
    assert said.endswith("6 rounds, 0 went wrong\n")
