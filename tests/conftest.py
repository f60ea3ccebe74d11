"""Eight devices for the tests of this process: the machine's cores, seen as separate ones."""

import os
import signal

# Before JAX starts; commands that a test starts are told their own number.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Here and in what tests start, programs run for seconds: half of these XLA would spend on speed.
# What README's own commands do is compiled as users have it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import pytest
from support import commands, readme

# Under `nohup` and in the background of a script these are ignored, and so they would be by all
# that a test starts; a handler, even of nothing, is not inherited.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items):
    """Of two processes one runs all that share a fixture; what takes longest is begun first."""
    for item in items:
        if {"copy", "quick_start"} & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group("readme"))
        elif "launch/test_tpu_pod" not in item.nodeid:  # where each has a TPU of its own
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    first = ("test_readme", "test_tensorboard", "launch/", "faults/", "multiprocess/")
    items.sort(key=lambda item: next((i for i, it in enumerate(first) if it in item.nodeid), 9))


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
