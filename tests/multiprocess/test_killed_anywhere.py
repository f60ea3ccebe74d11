"""A run that is killed and goes on with other processes and devices: nothing lost or repeated."""

import numpy as np
import pytest
from support import commands
from support.recording import Recording

STEPS = 60
FLAGS = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 1.335",
    "Cadence.save_every_epochs = 0.1",
    "Evaluation.every_epochs = 2",
    "Cosine.warmup_epochs = 0.1",
)
SHORT = (*FLAGS, "Run.num_epochs = 0.667")
REPRODUCIBLE = ("Step.reproducible_reduction = True",)


def recording(folder, *bindings):
    return Recording(folder, *commands.run_flags(*bindings))


def assert_close(found, expected):
    """Sums in another order differ in the last of 24 bits, which Adam, dividing by the root of
    tiny squares, enlarges: a parameter moves by 2e-3 a step at most, and by a hundredth of that
    less or more."""
    for name in expected:
        if name.startswith("params/"):
            np.testing.assert_allclose(found[name], expected[name], atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_fewer_processes(tmp_path):
    whole, killed = (
        recording(tmp_path / name, *SHORT, *REPRODUCIBLE) for name in ("whole", "killed")
    )
    whole.attempt(1, 2)
    # The second save waits for the first, so one is whole by then.
    killed.attempt(2, 1, killed_after=11, victim=1)
    assert "resuming after step" in killed.attempt(1, 4)
    assert sorted(whole.batches()) == list(range(1, 31))
    assert killed.batches() == whole.batches()
    assert commands.losses(killed.workdir) == commands.losses(whole.workdir)
    commands.assert_same_bits(commands.arrays(killed.workdir), commands.arrays(whole.workdir))


@pytest.mark.slow
@pytest.mark.parametrize("reproducible", [False, True])
def test_a_run_killed_three_times_goes_on_with_4_then_2_then_1_processes(
    reproducible, rng, tmp_path
):
    bindings = REPRODUCIBLE if reproducible else ()
    whole, killed = (recording(tmp_path / name, *FLAGS, *bindings) for name in ("whole", "killed"))
    whole.attempt(2, 2)
    first, second, third = sorted(rng.sample(range(6, STEPS - 2), 3))
    killed.attempt(4, 1, killed_after=first, victim=rng.randrange(4))
    killed.attempt(4, 1, killed_after=second, victim=rng.randrange(4))
    killed.attempt(2, 1, killed_after=third, victim=rng.randrange(2))
    assert "resuming after step" in killed.attempt(1, 8 if reproducible else 1)
    assert sorted(whole.batches()) == list(range(1, STEPS + 1))
    assert killed.batches() == whole.batches()
    found, expected = (commands.arrays(run.workdir) for run in (killed, whole))
    if reproducible:
        commands.assert_same_bits(found, expected)
    else:
        assert_close(found, expected)


@pytest.mark.slow
def test_five_random_kills_leave_the_same_bits_on_the_same_topology(rng, tmp_path):
    whole, killed = (recording(tmp_path / name, *FLAGS) for name in ("whole", "killed"))
    whole.attempt(2, 1)
    for step in sorted(rng.sample(range(6, STEPS - 2), 5)):
        killed.attempt(2, 1, killed_after=step, victim=rng.randrange(2))
    killed.attempt(2, 1)
    assert killed.batches() == whole.batches()
    assert sorted(killed.batches()) == list(range(1, STEPS + 1))
    commands.assert_same_bits(commands.arrays(killed.workdir), commands.arrays(whole.workdir))


@pytest.mark.slow
def test_the_reproducible_reduction_gives_the_same_bits_on_every_topology(tmp_path):
    found = {}
    for processes, devices in ((1, 2), (1, 4), (1, 8), (2, 2), (4, 1)):
        run = recording(tmp_path / f"{processes}x{devices}", *FLAGS, *REPRODUCIBLE)
        run.attempt(processes, devices)
        found[processes, devices] = commands.arrays(run.workdir), commands.losses(run.workdir)
    expected, losses = found[1, 2]
    assert sorted(losses) == list(range(1, STEPS + 1))
    for state, of_steps in found.values():
        commands.assert_same_bits(state, expected)
        assert of_steps == losses
