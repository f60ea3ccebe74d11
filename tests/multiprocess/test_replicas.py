"""A bit that flips in one replica of a running training is noticed, and named."""

import pytest
from support import commands, harness


@pytest.mark.slow
def test_a_flipped_bit_in_one_process_is_named_within_the_stated_number_of_steps(tmp_path):
    flags = commands.tiny_flags(
        tmp_path,
        *commands.ONE_LEVEL,
        "Run.num_epochs = 1",
        "Cadence.save_every_epochs = 1",
        "Watch.compare_every_steps = 4",
    )
    environment = harness.environment(
        PYTHONPATH=harness.module_path(),
        FLIP="1 6",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    program = [*commands.NEST_DIST, "train", "--gin_bindings=import support.flipping", *flags]
    with harness.Group.of(2, program, environment=environment) as group:
        assert group.wait() == [75, 75], group.said()
        for process in group.processes:
            # Of two, nobody knows which is right.
            assert "the parameters on device 0 of process 0, device 2048 of process 1 differ" in (
                process.said()
            )
            assert "after step 8: memory or a computation is at fault" in process.said()
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
