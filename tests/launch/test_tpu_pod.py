"""`launch/tpu_pod.sh` against a gcloud whose workers are processes of this machine."""

import contextlib
import os
import pty
import re
import signal
import subprocess

import psutil
import pytest
from support import cloud, harness

TRAIN = ("--", "--gin_file=runs/quickstart.gin", "--workdir=/tmp/unused")
NASTY = [
    "",
    " ",
    "a b  c ",
    "it's",
    "\"quoted\" 'and' `so on`",
    "$HOME ${PATH} $(reboot) !!",
    "back\\slash \\n \\",
    "a\nline\n\nand another\n",
    "tab\tand\rreturn\x01\x7f",
    "Größe = 'éñ日本語🙂'",
    "*?[a-z]{1,2} ~ # & | ; < > ( )",
    "--flag=--",
    "-n",
    "%s %d %%",
    "NesT.heads = (3, 6, 12)",
    "data_folder = 'gs://bucket/a b/$x\"y'",
    "x" * 20_000,
]


@pytest.fixture
def tpus(tmp_path):
    with cloud.Cloud(tmp_path / "cloud", cloud.recorder(tmp_path)) as made:
        yield made


def behave(tpus, code):
    (tpus.folder / "behaviour").write_text(code)


def sleepers(tpus):
    """What `sleep 300` as the behaviour has left running."""
    found = set()
    for process in tpus.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline() == ["sleep", "300"]:
                found.add(process)
    return found


def hide(word):
    """Without what differs between two calls: the name of the attempt and of temporary folders."""
    return re.sub(r"\d{8}-\d{6}-\d+|/tmp/[^ /]*", "", word)


def ready(tpus, *flags):
    """A TPU that is created and set up."""
    for command in ("create", "setup"):
        status, output = tpus.pod(command, *flags)
        assert status == 0, output
    return output


def test_arguments_arrive_byte_for_byte(tpus):
    ready(tpus)
    status, output = tpus.pod("train", "--", *NASTY)
    assert status == 0, output
    for worker in (0, 1):
        noted = tpus.home(worker) / "arguments"
        harness.wait_until(noted.exists, "the run")
        harness.wait_until(lambda: not tpus.processes(), "the end")
        expected = "".join(f"{word}\0" for word in ["train", *NASTY])
        assert noted.read_bytes() == expected.encode()
    secrets = [tpus.home(worker) / ".nest_dist" / "secret" for worker in (0, 1)]
    (secret,) = {path.read_text() for path in secrets}
    assert len(secret) == 64
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}


def test_setting_up_again_is_quick_and_keeps_what_was_made(tpus):
    first = ready(tpus)
    for worker in (0, 1):
        kept = tpus.home(worker) / "nest_dist" / "workdirs" / "mine"
        kept.mkdir(parents=True)
        # Of one that came with an earlier setup, which notes what it brings.
        old, mine = (
            tpus.home(worker) / "nest_dist" / "gin" / name for name in ("old.gin", "my.gin")
        )
        mine.touch()
        old.touch()
        with (tpus.home(worker) / "nest_dist" / ".setup").open("a") as brought:
            brought.write("gin/old.gin\n")
    status, again = tpus.pod("setup")
    assert (status, again) == (0, first)
    assert "worker 0 has Python 3." in again
    assert "worker 1 has Python 3." in again
    assert kept.exists()
    assert (old.exists(), mine.exists()) == (False, True)


def test_workers_with_different_packages_are_refused(tpus, tmp_path):
    # Only what worker 1 imports from has one more package.
    information = tmp_path / "path-1" / "odd-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    tpus.set(
        environment={**tpus.settings()["environment"], "PYTHONPATH": f"{tmp_path}/path-{{worker}}"}
    )
    assert tpus.pod("create")[0] == 0
    status, output = tpus.pod("setup")
    assert status == 2
    assert "the workers differ; delete the TPU and create it anew" in output


def test_what_is_under_way_is_not_disturbed(tpus):
    behave(tpus, "sleep 300")
    ready(tpus)
    assert tpus.pod("train", *TRAIN)[0] == 0
    running = tpus.processes()
    for command in (("train", *TRAIN), ("setup",)):
        status, output = tpus.pod(*command)
        assert status == 2
        assert "is under way; stop it" in output or "a run is under way" in output
    status, output = tpus.pod("run", "--", "--gin_file=other.gin")
    assert status == 2
    assert "another run, " in output
    assert "is under way; attach to it or stop it" in output
    assert tpus.processes() == running


@pytest.mark.slow
def test_a_run_is_stopped_and_says_so(tpus):
    behave(tpus, "trap 'exit 76' TERM; while true; do sleep 0.1; done")
    ready(tpus)
    _, output = tpus.pod("status")
    assert output == "nest: READY\nworker 0: no run\nworker 1: no run\n"
    assert tpus.pod("train", *TRAIN)[0] == 0
    _, output = tpus.pod("status")
    assert output.count("is under way") == 2
    status, output = tpus.pod("stop")
    assert (status, output) == (0, "")
    assert tpus.processes() == []
    _, output = tpus.pod("status")
    assert output.count("was stopped, status 76: it saved a checkpoint and stopped") == 2
    # Whoever watches learns it as well, and does not start it again.
    status, output = tpus.pod("attach", *cloud.QUICK)
    assert status == 76
    assert "the run was stopped; the same command goes on from its checkpoint" in output


def test_a_run_that_does_not_stop_is_killed_after_the_time_for_saving(tpus):
    behave(tpus, "trap '' TERM; while true; do sleep 0.1; done")
    ready(tpus)
    assert tpus.pod("train", *TRAIN)[0] == 0
    assert tpus.pod("stop", "--grace_seconds=1")[0] == 0
    assert tpus.processes() == []
    assert "was stopped, without a status: it was killed" in tpus.pod("status")[1]


def test_a_restart_that_would_not_help_is_not_tried(tpus):
    # The other worker has lost its peer, which alone would be worth a restart.
    behave(tpus, "[[ $FAKE_CLOUD_WORKER == nest/1 ]] && exit 1; exit 75")
    status, output = tpus.pod("run", *cloud.QUICK, *TRAIN)
    assert status == 1
    assert "worker 1: run " in output
    assert "the run ended with status 1; a restart would not help" in output
    assert "restart 1" not in output


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["ended 0", "ended 0"], "0"),
        (["ended 75", "ended 2"], "2"),
        (["ended 137", "ended 75"], "137"),
        (["lost -", "ended 75"], "75"),
        (["ended 0", "lost -"], "lost"),
        (["ended 134", "ended 130"], "130"),
        (["ended 75", "stopped 76"], "stopped"),
        (["ended 127", "lost -"], "127"),
    ],
)
def test_one_of_the_workers_ends_decides(states, expected):
    lines = "".join(f"{worker} {state} run\n" for worker, state in enumerate(states))
    done = subprocess.run(
        ["bash", "-c", "source launch/tpu_run.sh; verdict"],
        input=lines,
        cwd=harness.TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize(
    ("looks", "pod", "expected"),
    [
        # Both run, one has ended, and before the last word the TPU is taken away.
        (["0 running - r\n1 running - r", "0 running - r\n1 ended 75 r", "", ""], "GONE", "gone"),
        (["0 running - r", "0 ended 0 r\n1 ended 0 r", "0 ended 0 r\n1 ended 0 r"], "READY", "0"),
        ([""] * 10, "READY", "silent"),
    ],
)
def test_a_run_is_not_taken_for_done_while_a_worker_is_silent(looks, pod, expected, tmp_path):
    for index, look in enumerate(looks):
        (tmp_path / str(index)).write_text(look)
    code = f"""
        source launch/tpu_run.sh
        scratch={tmp_path} poll_seconds=0 follower=
        say() {{ :; }}; logs() {{ :; }}; on_workers() {{ :; }}; pod_state() {{ echo {pod}; }}
        existing() {{ echo nest READY 2; }}
        statuses() {{
          echo >>"$scratch/looks"
          cat "$scratch/$(($(wc -l <"$scratch/looks") - 1))"
        }}
        watch 1
        echo "$outcome"
    """
    done = harness.run(["bash", "-c", code])
    assert done.stdout == f"{expected}\n"


@pytest.mark.slow
def test_restarts_are_bounded_and_come_later_each_time(tpus):
    behave(tpus, 'echo >>"$HOME/starts"; exit 75')
    status, output = tpus.pod("run", *cloud.QUICK, "--max_restarts=2", *TRAIN)
    assert status == 75
    assert "restart 1 of 2 in 1 s" in output
    assert "restart 2 of 2 in 2 s" in output
    assert "2 restarts were all that --max_restarts allows" in output
    assert (tpus.home(1) / "starts").read_text() == "\n" * 3


def test_a_worker_that_cannot_start_ends_the_others(tpus):
    behave(tpus, "sleep 300")
    ready(tpus)
    (tpus.home(1) / ".nest_dist" / "python").unlink()
    status, output = tpus.pod("train", *TRAIN)
    assert status == 2
    assert "worker 1: nothing is set up here; run launch/tpu_pod.sh setup" in output
    assert "did not start on every worker" in output
    harness.wait_until(lambda: not tpus.processes(), "the end of all")


@pytest.mark.slow
def test_logs_come_from_all_workers_each_line_with_its_worker(tpus):
    behave(tpus, "echo 'two words'; sleep 1; echo last")
    ready(tpus)
    _, output = tpus.pod("logs")
    assert sorted(output.splitlines()) == [
        f"worker {worker}: no run was started here." for worker in (0, 1)
    ]
    assert tpus.pod("train", *TRAIN)[0] == 0
    status, output = tpus.pod("attach", *cloud.QUICK)
    assert status == 0, output
    for worker in (0, 1):
        for line in (f"this is nest/{worker}", "two words", "last"):
            assert f"[{worker}] {line}" in output.splitlines()
    assert "the run is done; nest still costs, delete ends that" in output
    status, output = tpus.pod("logs", "--lines=1")
    assert sorted(output.splitlines()) == ["[0] last", "[1] last"]


def test_a_connection_that_breaks_starts_nothing_twice(tpus):
    behave(tpus, 'echo >>"$HOME/starts"; sleep 300')
    ready(tpus)
    (tpus.folder / "broken_connections").write_text("2")
    status, output = tpus.pod("train", *TRAIN)
    assert status == 0, output
    assert (tpus.folder / "broken_connections").read_text() == "0"
    for worker in (0, 1):
        assert (tpus.home(worker) / "starts").read_text() == "\n"


@pytest.mark.slow
def test_a_run_outlives_the_machine_that_started_it_and_is_found_again(tpus):
    behave(tpus, 'echo >>"$HOME/starts"; sleep 3')
    first = tpus.start("run", *cloud.QUICK, *TRAIN)
    harness.wait_until((tpus.home(1) / "starts").exists, first.said)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    status, output = tpus.pod("run", *cloud.QUICK, *TRAIN)
    assert status == 0, output
    assert "is under way; going on with it" in output
    assert (tpus.home(0) / "starts").read_text() == "\n"


def test_a_lock_is_removed_only_if_its_owner_is_dead(tpus):
    ready(tpus)
    lock = tpus.home(1) / "libtpu_lockfile"
    with lock.open("w"):
        status, output = tpus.pod("train", *TRAIN)
        assert status == 2
        assert f"worker 1: process {os.getpid()} (" in output
        assert "uses the TPU; end it first" in output
        assert lock.exists()
    status, output = tpus.pod("train", *TRAIN)
    assert status == 0, output
    assert f"worker 1: removed {lock}, whose owner is dead" in output
    assert not lock.exists()


def test_ctrl_c_leaves_the_run_running(tpus):
    behave(tpus, 'touch "$HOME/started"; sleep 300')
    watching = tpus.start("run", *cloud.QUICK, *TRAIN)
    harness.wait_until((tpus.home(1) / "started").exists, watching.said)

    def follows_logs():
        return any("log" in call[6] for call in tpus.calls() if len(call) > 6)

    harness.wait_until(follows_logs, watching.said)
    running = sleepers(tpus)
    assert len(running) == 2
    watching.send_signal(signal.SIGINT)
    assert watching.wait() == 130
    assert "the run goes on; attach shows it again, stop ends it" in watching.said()
    assert sleepers(tpus) == running


@pytest.mark.slow
def test_a_stop_between_two_attempts_is_heard(tpus):
    behave(tpus, "exit 75")
    watching = tpus.start("run", "--poll_seconds=1", "--backoff_seconds=5", *TRAIN)
    harness.wait_until(lambda: "restart 1 of 20 in 5 s" in watching.said(), watching.said)
    assert tpus.pod("stop")[0] == 0
    assert watching.wait() == 76
    assert "the run was stopped" in watching.said()


def test_a_queued_resource_is_waited_for(tpus):
    status, output = tpus.pod("create", "--queued", "--spot", *cloud.QUICK)
    assert status == 0, output
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"the request is {state}\n" in output
    (made,) = [call for call in tpus.calls() if "create" in call]
    assert {"--spot", "--valid-until-duration=60m", "--node-id=nest"} <= set(made)
    status, output = tpus.pod("create", "--queued")
    assert (status, output) == (0, "tpu_pod.sh: nest is there\n")
    assert tpus.pod("delete", "--yes")[0] == 0
    assert list(tpus.folder.glob("*/nest*")) == []


def test_ctrl_c_in_the_queue_says_that_the_request_stays(tpus):
    tpus.set(queue=["WAITING_FOR_RESOURCES"])
    waiting = tpus.start("run", "--queued", *cloud.QUICK, *TRAIN)
    harness.wait_until(lambda: "the request is WAITING" in waiting.said(), waiting.said)
    os.killpg(waiting.pid, signal.SIGINT)  # as a terminal does
    assert waiting.wait() == 130
    stays = "the request stays in the queue, and the TPU costs from when it comes; "
    assert f"tpu_pod.sh: {stays}the same command waits on, delete withdraws it" in waiting.said()
    status, output = tpus.pod("status")
    assert status == 1
    assert f"nest: absent\nits request is WAITING_FOR_RESOURCES: {stays}" in output
    assert tpus.pod("delete", "--yes")[0] == 0
    assert tpus.pod("status") == (1, "nest: absent\n")


def test_a_request_that_is_not_met_in_time_is_withdrawn(tpus):
    tpus.set(queue=["WAITING_FOR_RESOURCES"])
    status, output = tpus.pod("create", "--queued", "--wait_minutes=0", *cloud.QUICK)
    assert status == 2
    assert "no TPU came within --wait_minutes=0; the request was withdrawn" in output
    assert list(tpus.folder.glob("requests/*")) == []
    tpus.set(queue=["FAILED"])
    status, output = tpus.pod("create", "--queued", *cloud.QUICK)
    assert status == 2
    assert "the request ended as FAILED and was deleted" in output
    assert list(tpus.folder.glob("requests/*")) == []


@pytest.mark.parametrize("kind", [("--queued",), ("--spot",)])
def test_a_preempted_tpu_is_made_again(tpus, kind):
    behave(tpus, '[[ -e $FAKE_CLOUD/once ]] && exit 0; touch "$HOME/started"; sleep 300')
    running = tpus.start("run", *kind, *cloud.QUICK, *TRAIN)
    harness.wait_until((tpus.home(1) / "started").exists, running.said)
    (tpus.folder / "once").touch()
    tpus.preempt()
    status, output = running.wait(), running.said()
    assert status == 0, output
    assert "the TPU is gone" in output
    assert "restart 1 of 20 in 1 s" in output
    assert "nest was preempted or ended; deleting what is left of it" in output
    assert sum("create" in call for call in tpus.calls()) == 2


def test_a_tpu_that_is_made_again_has_new_keys_and_is_reached(tpus):
    for _ in range(2):
        ready(tpus)
        known = (tpus.folder / "known_hosts").read_text()
        assert tpus.pod("delete", "--yes")[0] == 0
    ready(tpus)
    assert (tpus.folder / "known_hosts").read_text() != known
    # One that this machine has not made is not trusted; what to do is said.
    (tpus.folder / "known_hosts").write_text(known)
    status, output = tpus.pod("setup")
    assert status == 2
    assert "HOST IDENTIFICATION HAS CHANGED" in output
    assert f'ssh-keygen -f "{tpus.folder}/known_hosts" -R "tpu.nest-0"' in output
    assert output.splitlines()[-1] == ("tpu_pod.sh: the project was not copied to nest; see above.")


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("", 1), ("y", 0)])
def test_deleting_asks(tpus, answer, left):
    tpus.pod("create")
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = harness.run(
        ["bash", "launch/tpu_pod.sh", "delete"], environment=tpus.environment(), stdin=theirs
    )
    os.close(ours)
    os.close(theirs)
    asked = "Delete nest in us-west4-a of my-project, with everything on its disks? [y/N] "
    assert done.stderr.startswith(asked)
    assert ("nest stays." in done.stderr) == bool(left)
    assert len(list((tpus.folder / "nodes").iterdir())) == left


@pytest.mark.slow
def test_slices_are_one_run(tpus):
    flags = ("--slices=2", *cloud.QUICK)
    output = ready(tpus, *flags)
    assert output.startswith("worker 0.0 has ")
    (made,) = [call for call in tpus.calls() if "create" in call]
    assert {"--node-count=2", "--node-prefix=nest"} <= set(made)
    assert tpus.pod("train", *flags, *TRAIN)[0] == 0
    status, output = tpus.pod("attach", *flags)
    assert status == 0, output
    for slice_, worker in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert f"[{slice_}.{worker}] this is nest-{slice_}/{worker}" in output.splitlines()
        assert f"worker {slice_}.{worker}: run " in output
    assert tpus.pod("delete", "--yes", *flags)[0] == 0
    assert list(tpus.folder.glob("*/nest*")) == []


@pytest.mark.parametrize(
    ("arguments", "changes", "said"),
    [
        (
            ("status",),
            {"PROJECT_ID": ""},
            "--project is not given; give --project=VALUE or set PROJECT_ID.",
        ),
        (("status",), {"ZONE": ""}, "--zone is not given; give --zone=VALUE or set ZONE."),
        (("status",), {"TPU_NAME": ""}, "--name is not given; give --name=VALUE or set TPU_NAME."),
        (
            ("create",),
            {"ACCELERATOR_TYPE": ""},
            "give --accelerator_type=VALUE or set ACCELERATOR_TYPE.",
        ),
        (
            ("create",),
            {"RUNTIME_VERSION": ""},
            "give --runtime_version=VALUE or set RUNTIME_VERSION.",
        ),
        (("crate",), {}, "unknown command 'crate'; --help lists them."),
        (("create", "--size=3"), {}, "unknown flag '--size=3'; --help lists them"),
        (("create", "--slices=two"), {}, "--slices is 'two'; give a whole number from 1"),
        (("run",), {}, "nothing follows after --; give the flags of nest-dist train"),
        (("stop", "--", "now"), {}, "stop takes nothing after --, not 'now'."),
        (("train", "--", "x" * 100_000), {}, "of 100000; put bindings into a gin file."),
        (("delete",), {}, "nobody is there to ask whether nest may be deleted; give --yes."),
        (("attach",), {}, "no run was started on nest."),
        (("setup",), {}, "the project was not copied to nest; see above."),
        (
            ("create", "--zone=us-mars1-a"),
            {},
            "the TPUs of project 'my-project' in zone 'us-mars1-a' cannot be listed",
        ),
        (("status", "--zone=us-mars1-a"), {}, "the TPUs of zone 'us-mars1-a' cannot be listed"),
        (
            ("delete", "--yes", "--zone=us-mars1-a"),
            {},
            "the TPUs of zone 'us-mars1-a' cannot be listed",
        ),
        (
            ("create", "--accelerator_type=v9-1"),
            {},
            "nest was not created; see above. Zones and accelerator types",
        ),
        (
            ("create", "--queued", "--accelerator_type=v9-1"),
            {},
            "nest was not requested; see above. Zones and accelerator types",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tpus, arguments, changes, said):
    status, output = tpus.pod(*arguments, **changes)
    assert status == 2
    line = [line for line in output.splitlines() if line.startswith("tpu_pod.sh: ")][-1]
    assert said in line


@pytest.mark.slow
def test_a_dry_run_shows_the_very_commands(tpus):
    """What it shows, typed into a shell, makes the calls that are made without it."""
    _, shown = tpus.pod("run", "--dry_run", "--create_flag=--network=mine", "--", *NASTY)
    shown = "".join(line for line in shown.splitlines(True) if not line.startswith("tpu_pod.sh"))
    assert tpus.calls() == []
    assert harness.run(["bash", "-c", shown], environment=tpus.environment()).returncode == 0
    typed = tpus.calls()
    noted = tpus.home(1) / "arguments"
    harness.wait_until(noted.exists, "the run")
    assert noted.read_bytes() == "".join(f"{word}\0" for word in ["train", *NASTY]).encode()
    tpus.pod("delete", "--yes")
    (tpus.folder / "calls.jsonl").unlink()
    status, output = tpus.pod("run", *cloud.QUICK, "--create_flag=--network=mine", "--", *NASTY)
    assert status == 0, output
    assert any("--network=mine" in call for call in typed)
    done = [[hide(word) for word in call] for call in tpus.calls()]
    assert [[hide(word) for word in call] for call in typed] == done[: len(typed)]


def test_no_secret_is_shown_or_stored(tpus):
    behave(tpus, "env")
    secrets = {name: f"secret-{name}" for name in ("HF_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN")}
    status, output = tpus.pod("run", *cloud.QUICK, *TRAIN, **secrets)
    assert status == 0, output
    left = [
        path
        for path in tpus.folder.rglob("*")
        if path.is_file() and b"secret-" in path.read_bytes()
    ]
    assert (left, "secret-" in output) == ([], False)
    assert (tpus.home(0) / ".nest_dist").stat().st_mode & 0o077 == 0
