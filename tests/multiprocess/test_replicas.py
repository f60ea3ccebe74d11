"""A bit that flips in one replica of a running training is noticed, and named."""

import pytest
from support import commands, harness


def train(workdir, flip, *bindings):
    """Two processes, of which one flips a bit: exit codes, and what each says."""
    environment = harness.environment(
        PYTHONPATH=harness.module_path(),
        FLIP=flip,
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    flags = commands.tiny_flags(workdir, *commands.ONE_LEVEL, *bindings)
    program = [*commands.NEST_DIST, "train", "--gin_bindings=import support.flipping", *flags]
    with harness.Group.of(2, program, environment=environment) as group:
        return group.wait(), [process.said() for process in group.processes]


@pytest.mark.slow
def test_a_flipped_bit_in_one_process_is_named_within_the_stated_number_of_steps(tmp_path):
    bindings = ("Run.num_epochs = 1", "Cadence.save_every_epochs = 1")
    codes, said = train(tmp_path, "1 6", *bindings, "Watch.compare_every_steps = 4")
    assert codes == [75, 75], said
    for text in said:
        # Of two, nobody knows which is right.
        assert "the parameters on device 0 of process 0, device 2048 of process 1 differ" in text
        assert "after step 8: memory or a computation is at fault" in text
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_a_step_that_gives_two_results_ends_the_run_which_goes_on_from_its_checkpoint(tmp_path):
    bindings = (
        "Run.num_epochs = '12 steps'",
        "Cadence.save_every_epochs = '3 steps'",
        "Watch.repeat_every_steps = 4",
    )
    # Step 5 is the first that is done twice, so its second time is the sixth call.
    codes, said = train(tmp_path, "1 6", *bindings)
    assert codes == [75, 75], said
    for text in said:
        assert "step 5, done twice, gave two results on device 2048 of process 1: memory" in text
    codes, said = train(tmp_path, "1 1000", *bindings)
    assert codes == [0, 0], said
    assert "resuming after step 3," in said[0]
