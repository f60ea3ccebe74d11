"""Eight devices for the tests of this process: the machine's cores, seen as separate ones."""

import os
import random
import signal

# Before JAX starts; commands that a test starts are told their own number.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Here and in what tests start, programs run for seconds: half of these XLA would spend on speed.
# What README's own commands do is compiled as users have it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import pytest
from support import commands, readme

# Of all random choices; all workers of pytest-xdist inherit it.
SEED = os.environ.setdefault("NEST_DIST_TEST_SEED", str(random.randrange(1 << 32)))

pytest_plugins = ["support.trained"]

# Under `nohup` and in the background of a script these are ignored, and so they would be by all
# that a test starts; a handler, even of nothing, is not inherited.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
# As Ctrl-C does, it ends the tests by way of their fixtures, which end what was started.
signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items):
    """One worker runs all tests that share a fixture. Unit tests come first, the quick ones ahead.

    Behind them come the groups, the longest first, so that both workers end together.
    """
    for item in items:
        if {"copy", "quick_start"} & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group("readme"))
        elif "launch/test_tpu_pod" not in item.nodeid:  # where each has a TPU of its own
            tier = "medium" if item.get_closest_marker("medium") else ""
            item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {tier}"))
    rooms = ("unit/", "test_readme", "test_tensorboard", "faults/", "launch/", "multiprocess/")

    def turn(item):
        room = next((at for at, name in enumerate(rooms) if name in item.nodeid), len(rooms))
        return room, bool(item.get_closest_marker("medium"))

    items.sort(key=turn)


@pytest.fixture
def rng(request):
    """A `random.Random` of the test's own; what it prints when a test fails repeats its choices."""
    print(f"NEST_DIST_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """An empty home folder, which a run must leave empty."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """What a newcomer has cloned."""
    return readme.fresh_copy(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def quick_start(copy, home):
    """The first command of README on a machine that has Python and nothing else of ours."""
    done = readme.shell(readme.QUICK_START, copy, HOME=str(home))
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "workdirs" / "quickstart", done


@pytest.fixture(scope="session")
def last_step(quick_start):
    """Of the quick start."""
    workdir, _ = quick_start
    return commands.metrics(workdir)[-1]["step"]


@pytest.fixture(scope="session")
def other_run(quick_start, copy):
    """README's run with bindings, beside the quick start."""
    done = readme.shell(readme.BINDINGS, copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "workdirs" / "other", done
