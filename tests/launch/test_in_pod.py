"""`launch/in_pod.sh` with a nest-dist that ends as a file says."""

import signal
import time

import pytest
from support import commands, harness

# Appends its arguments to `starts`, and ends with the first code of `codes`, which it removes.
FAKE = """#!/usr/bin/env bash
cd {folder}
echo "$*" >>starts
trap 'echo stopped >>starts; sleep 0.5; exit 76' TERM
code=$(head -n 1 codes)
sed -i 1d codes
if [[ $code == wait ]]; then
  for ((i = 0; i < 300; i++)); do sleep 0.1; done
fi
exit "$code"
"""


@pytest.fixture
def pod(tmp_path):
    """Starts it with the codes of its attempts; gives the process and the starts so far."""
    program = tmp_path / "bin" / "nest-dist"
    program.parent.mkdir()
    program.write_text(FAKE.format(folder=tmp_path))
    program.chmod(0o755)

    def start(*codes, **variables):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        environment = harness.environment(LIBTPU_LOCKFILE=str(tmp_path / "lock"), **variables)
        environment["PATH"] = f"{program.parent}:{environment['PATH']}"
        command = ["bash", "launch/in_pod.sh", "train", "--workdir=a b"]
        return harness.Process(command, folder=commands.TOP, environment=environment)

    def starts():
        path = tmp_path / "starts"
        return path.read_text().splitlines() if path.exists() else []

    return start, starts


@pytest.mark.parametrize(
    ("codes", "last", "attempts"),
    [
        ((0,), 0, 1),
        ((75, 137, 134, 0), 0, 4),
        ((75, 75, 75, 75), 75, 4),  # the JobSet's turn
        ((76,), 76, 1),
        ((2,), 2, 1),
        ((75, 1), 1, 2),
    ],
)
def test_it_starts_again_where_that_helps(codes, last, attempts, pod):
    start, starts = pod
    with start(*codes) as process:
        assert process.wait() == last, process.said()
    assert starts() == ["train --workdir=a b"] * attempts


def test_attempts_that_lasted_do_not_use_up_the_restarts(pod):
    start, starts = pod
    with start(*[75] * 6, 0, HEALTHY_SECONDS="0") as process:
        assert process.wait() == 0, process.said()
    assert len(starts()) == 7


def test_a_stop_is_passed_on_and_waited_for(pod):
    start, starts = pod
    with start("wait") as process:
        harness.wait_until(starts, process.said)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 76, process.said()
    assert starts() == ["train --workdir=a b", "stopped"]
