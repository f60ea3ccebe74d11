"""A save that is killed at any of its writes: the checkpoint before or the new one, both whole."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from support import commands, saving

from nest_dist.checkpointing import states


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders by the write at which the save in them was killed; in the last it was not."""
    folder = tmp_path_factory.mktemp("killed")
    tests = commands.TOP / "tests"
    path = os.pathsep.join(map(str, (tests, tests / "support" / "sabotage")))
    done = subprocess.run(
        [sys.executable, "-m", "support.saving", folder],
        env={**os.environ, "PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    return {number: folder / str(number) / "checkpoints" for number in numbers}


def restored(checkpoints, step):
    like = jax.eval_shape(lambda: saving.state(step))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoints.restore(step, states.abstract(like, jax.tree.map(lambda _: here, like)))


def test_a_kill_at_any_write_leaves_a_whole_checkpoint_and_the_next_save_succeeds(killed):
    assert len(killed) > 15
    newest = []
    for number, folder in killed.items():
        checkpoints = saving.opened(folder)
        step, notes = checkpoints.newest_whole()
        newest.append(step)
        assert len(notes) <= 1, notes
        assert all("it was never finished" in note for note in notes), notes
        jax.tree.map(np.testing.assert_array_equal, restored(checkpoints, step), saving.state(step))
        checkpoints.close()
        saving.save(folder, 3, 4)
        checkpoints = saving.opened(folder)
        assert checkpoints.newest_whole() == (4, []), number
        assert checkpoints.steps() == [3, 4]
        checkpoints.close()
    # Up to some write it is the one before, from there on the new one.
    assert newest == sorted(newest)
    assert set(newest) == {2, 3}
