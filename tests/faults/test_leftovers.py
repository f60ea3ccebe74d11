"""What a killed run has left on its host is removed by the next start of any run there."""

import os
import signal

import psutil
import pytest
from support import commands, harness

from nest_dist.data import shm_pool

pytestmark = pytest.mark.medium


@pytest.mark.slow
def test_a_killed_group_leaves_nothing_behind_the_next_start(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = harness.environment(TMPDIR=str(temporary))

    def train(name, *bindings):
        flags = commands.tiny_flags(tmp_path / name, *commands.ONE_LEVEL, *bindings)
        return harness.Process([*commands.NEST_DIST, "train", *flags], environment=environment)

    long = ("Run.num_epochs = 900", "TrainingData.workers = 2", "Cadence.profile_first_step = 2")
    with train("killed", *long, "Cadence.profile_num_steps = 10000") as killed:
        commands.wait_for_step(tmp_path / "killed", 20, killed)
        mapped = {mapping.path for mapping in psutil.Process(killed.pid).memory_maps()}
        (prefix,) = {
            path.split("/")[-1][: len("nest_01234567_")]
            for path in mapped
            if path.startswith(f"{shm_pool.FOLDER}/nest_")
        }
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert list(shm_pool.FOLDER.glob(f"*{prefix}*"))
        assert list(temporary.glob("nest_dist_*"))
        # A run that is alive is left alone.
        with train("living", *long) as living:
            commands.wait_for_step(tmp_path / "living", 20, living)
            with train("next", "Run.num_epochs = 0.3", "Evaluation.every_epochs = 0.3") as later:
                assert later.wait() == 0, later.said()
            reached = commands.metrics(tmp_path / "living")[-1]["step"]
            commands.wait_for_step(tmp_path / "living", reached + 20, living)
            living.terminate()
            assert living.wait() == 76, living.said()
    assert not list(shm_pool.FOLDER.glob(f"*{prefix}*"))
    assert list(temporary.iterdir()) == []
