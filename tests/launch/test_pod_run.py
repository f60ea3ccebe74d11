"""README's way from nothing to a run on a TPU, with real training, against a fake gcloud.

Its commands are run as they stand there, but for one thing: the model is tiny and looked after more
often. The bucket lies on this machine; what is spoken to it is Cloud Storage's own protocol.
"""

import contextlib
import json
import os
import shlex
import signal
import sys
import urllib.request

import pytest
from support import cloud, commands, fake_buckets, harness, network, ports

pytestmark = pytest.mark.slow

BINDINGS = (
    *commands.TINY,
    *commands.ONE_LEVEL,
    "Run.num_epochs = 3",
    "Cadence.save_every_epochs = 1",
)


@pytest.fixture(
    scope="module",
    params=["processes", pytest.param("hosts", marks=pytest.mark.slow)],
)
def tpus(request, tmp_path_factory):
    """Workers that are processes of this machine or, where it allows them, hosts of their own."""
    folder = tmp_path_factory.mktemp("pod")
    with contextlib.ExitStack() as stack:
        hosts = None
        if request.param == "hosts":
            if not network.allowed():
                pytest.skip(
                    "apt install iproute2, and run as root where network namespaces are allowed"
                )
            hosts = stack.enter_context(network.Hosts(2))
        here = hosts.gateway if hosts else "127.0.0.1"
        buckets = stack.enter_context(fake_buckets.Buckets(folder / "buckets", here))
        made = cloud.Cloud(folder / "cloud", cloud.tpu_python(folder), hosts)
        stack.enter_context(made)
        more = {**buckets.environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        made.set(environment={**made.settings()["environment"], **more})
        (folder / "cloud" / "buckets").symlink_to(buckets.folder)
        yield made


@pytest.fixture(scope="module")
def workdir(tpus):
    """Where the fake keeps the objects below gs://my-bucket/digits."""
    return tpus.folder / "buckets" / "my-bucket" / "digits"


def start(tpus, command, *more):
    """A line of README, with `more` at its end."""
    line = " ".join([command, *map(shlex.quote, more)])
    return harness.Process(line, environment=tpus.environment())


def succeeds(tpus, command, *more):
    with start(tpus, command, *more) as process:
        assert process.wait() == 0, process.said()
        return process.said()


def trained(workdir, step):
    return any(line["step"] >= step for line in commands.metrics(workdir))


@pytest.fixture(scope="module")
def disturbed(tpus, workdir):
    """The output of the run of README, of which one worker was killed on the way."""
    for command in cloud.PREPARE:
        succeeds(tpus, command)
    quick = cloud.RUN.replace(" run ", f" run {' '.join(cloud.QUICK)} ")
    bindings = [f"--gin_bindings={binding}" for binding in BINDINGS]
    with start(tpus, quick, *bindings) as running:
        saved = workdir / "checkpoints" / "45" / "metadata.sha256"
        harness.wait_until(lambda: saved.exists() or not running.running(), running.said)
        survivor, victim = tpus.trainer("nest/0"), tpus.trainer("nest/1")
        victim.send_signal(signal.SIGKILL)
        status, output = running.wait(), running.said()
    assert not survivor.is_running()
    return status, output


def test_a_killed_worker_restarts_all_and_the_run_ends_well(tpus, workdir, disturbed):
    status, output = disturbed
    assert status == 0, output
    assert "ended, status 137: signal KILL" in output
    assert "restart 1 of 20 in 1 s" in output
    assert "restart 2 of 20" not in output
    assert "[0] nest_dist" in output
    # The workers found each other by the metadata of the TPU.
    assert "2 cpu devices in 2 processes" in output
    assert "resuming after step" in output
    assert "done: 135 steps" in output
    assert "the run is done; nest still costs, delete ends that" in output
    steps = [line["step"] for line in commands.metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, 136))


def test_a_folder_in_a_bucket_is_measured_from_elsewhere(tpus, workdir, disturbed, monkeypatch):
    for name, value in tpus.settings()["environment"].items():
        if name.startswith(("STORAGE_", "TENSORSTORE_", "GOOGLE_", "GCSFS_")):
            monkeypatch.setenv(name, value)
    done = commands.nest_dist(
        "evaluate", "--workdir=gs://my-bucket/digits", "--format=json", succeeds=True
    )
    measured = json.loads(done.stdout)
    assert measured["step"] == 135
    assert measured["eval/top_1"] == commands.evaluations(workdir)[-1]["eval/top_1"]


def test_the_other_commands_of_readme_show_and_end_the_run(tpus, disturbed):
    assert succeeds(tpus, cloud.STATUS).count(", done") == 2
    lines = succeeds(tpus, cloud.LOGS).splitlines()
    assert any(line.startswith("[0] ") and "done: 135 steps" in line for line in lines)
    port = ports.free()
    address = f"http://localhost:{port}/data/plugin/scalars/tags"

    def shows_loss():
        return b"train/loss" in urllib.request.urlopen(address, timeout=5).read()

    with start(tpus, cloud.TENSORBOARD, f"--port={port}") as viewer:
        harness.wait_until(shows_loss, viewer.said, errors=(OSError,))
        os.killpg(viewer.pid, signal.SIGTERM)
        harness.wait_until(lambda: not tpus.processes(), viewer.said)
    assert succeeds(tpus, cloud.STOP) == ""
    succeeds(tpus, cloud.DELETE, "--yes")
    assert list(tpus.folder.glob("*/nest*")) == []
    assert trained(tpus.folder / "buckets" / "my-bucket" / "digits", 135)


@pytest.mark.slow
def test_a_bare_worker_is_set_up_once(tmp_path):
    """With the real environment, hundreds of megabytes of it, on a TPU of one worker."""
    flags = ("--accelerator_type=v5litepod-8",)
    with cloud.Cloud(tmp_path / "cloud", cloud.tpu_python(tmp_path)) as bare:
        variables = bare.settings()["environment"]
        del variables["NEST_DIST_PYTHON"]
        # Where packages come from is this machine's business.
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        bare.set(environment={**variables, **pip, "PYTHON": sys.executable})
        assert bare.pod("create", *flags)[0] == 0
        status, first = bare.pod("setup", *flags)
        assert status == 0, first
        assert "environment: installing requirements-tpu.txt" in first
        python = bare.home(0) / "nest_dist" / ".venv" / "bin" / "python"
        probe = "import jax, libtpu, nest_dist; print(nest_dist.__file__)"
        done = harness.run([python, "-c", probe], folder=bare.home(0))
        assert done.stdout.startswith(str(bare.home(0)))
        status, again = bare.pod("setup", *flags)
        assert status == 0, again
        assert "environment:" not in again
        assert first.endswith(again)
