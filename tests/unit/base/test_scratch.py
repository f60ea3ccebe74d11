"""Folders in the temporary folder: gone with their process, or at the next start."""

import os
import sys
import tempfile

import pytest
from support import harness

from nest_dist.base import scratch

HOLDER = """
import sys
from nest_dist.base import scratch
made = scratch.Scratch()
(made.folder / "trace").write_text("large")
print(made.folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def holder(temporary):
    environment = harness.environment(PYTHONPATH=harness.module_path(), TMPDIR=str(temporary))
    process = harness.Process([sys.executable, "-c", HOLDER], environment=environment, stdin=-1)
    harness.wait_until(lambda: "\n" in process.said() or not process.running(), process.said)
    return process


def test_a_folder_is_removed_by_its_process(temporary):
    made = scratch.Scratch()
    (made.folder / "below").mkdir()
    assert list(temporary.iterdir()) == [made.folder]
    made.remove()
    assert list(temporary.iterdir()) == []


def test_the_next_start_removes_what_a_killed_process_has_left_and_nothing_else(temporary):
    others = temporary / "nest_dist_backup", temporary / "nest_dist_scratch_notes"
    others[0].mkdir()
    others[1].write_text("a file")
    own = scratch.Scratch()
    with holder(temporary) as living, holder(temporary) as killed:
        folders = [type(temporary)(process.said().strip()) for process in (living, killed)]
        killed.kill()
        killed.wait()
        scratch.remove_leftovers()
        assert [folder.exists() for folder in folders] == [True, False]
        assert (folders[0] / "trace").read_text() == "large"
    scratch.remove_leftovers()
    assert sorted(temporary.iterdir()) == sorted([*others, own.folder])
    own.remove()


def test_a_folder_beside_a_path_is_found_by_that_path_alone(tmp_path):
    wanted, other = tmp_path / "out[1]", tmp_path / "out"
    killed, living = scratch.Scratch(wanted), scratch.Scratch(other)
    os.close(killed._lock)  # as if its process had ended
    for path in (other, wanted):
        assert killed.folder.name.startswith(".out[1].")
        scratch.remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [living.folder]
    living.remove()
