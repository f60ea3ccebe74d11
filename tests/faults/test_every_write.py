"""A save that is killed at any of its writes: the checkpoint before or the new one, both whole."""

import jax
import numpy as np
import pytest
from support import harness, saving


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders by the write at which the save in them was killed; in the last it was not."""
    folder = tmp_path_factory.mktemp("killed")
    sabotage = harness.TOP / "tests" / "support" / "sabotage"
    harness.python(
        *("-m", "support.saving", folder),
        environment=harness.environment(PYTHONPATH=harness.module_path(sabotage)),
        succeeds=True,
    )
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    return {number: folder / str(number) / "checkpoints" for number in numbers}


def restored(checkpoints, step):
    like = jax.eval_shape(lambda: saving.state(step))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoints.restore(step, jax.tree.map(lambda leaf: leaf.update(sharding=here), like))


@pytest.mark.slow
def test_a_kill_at_any_write_leaves_a_whole_checkpoint_and_the_next_save_succeeds(killed):
    assert len(killed) > 15
    newest = []
    for number, folder in killed.items():
        checkpoints = saving.opened(folder)
        step, _ = checkpoints.newest()
        newest.append(step)
        assert checkpoints.notes() == []
        jax.tree.map(np.testing.assert_array_equal, restored(checkpoints, step), saving.state(step))
        checkpoints.close()
        saving.save(folder, 3, 4)
        checkpoints = saving.opened(folder)
        assert checkpoints.newest()[0] == 4, number
        assert checkpoints.steps() == [3, 4]
        checkpoints.close()
    # Up to some write it is the one before, from there on the new one.
    assert newest == sorted(newest)
    assert set(newest) == {2, 3}
