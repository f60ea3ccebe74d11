"""Losses and evaluations that are not finite: bad data is left out once, and the run goes on."""

import json
import sys

import pytest
from support import commands, harness

pytestmark = pytest.mark.medium

# 18 steps, a checkpoint after 9 and 18.
BINDINGS = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 0.4",
    "Cadence.save_every_epochs = 0.2",
    "Evaluation.every_epochs = 0.2",
    "Run.checkpoints = @Retention()",
    "Retention.last = 9",
)


def train(workdir, *bindings, processes=1, **environment):
    command = [sys.executable, "-m", "support.poisoned", "train"]
    flags = commands.tiny_flags(workdir, *BINDINGS, *bindings)
    environment = harness.environment(PYTHONPATH=harness.module_path(), **environment)
    if processes == 1:
        done = harness.run([*command, *flags], environment=environment)
        return [done.returncode], done.stdout + done.stderr
    with harness.Group.of(processes, [*command, *flags], environment=environment) as group:
        return group.wait(), group.said()


def left_out(workdir, step):
    path = workdir / "checkpoints" / str(step) / "metadata.json"
    return json.loads(path.read_text())["batches_left_out"]


def steps(workdir, name):
    return [line["step"] for line in commands.metrics(workdir) if name in line]


def test_two_bad_batches_before_the_first_checkpoint_are_left_out_once_each(tmp_path):
    codes, said = train(tmp_path, "NonFinite.policy = 'rewind'", BAD_BATCHES="4,7,20")
    assert codes == [0], said
    # Batch 4 is met at step 5. From batch 5 on, batch 7 is met at step 3, and from batch 8 on,
    # batch 20 at step 13, after the checkpoint of step 9: its batches from 17 on are left out.
    for step, again, count in ((0, 5, 1), (0, 3, 2), (9, 4, 3)):
        text = f"Going back to step {step} and leaving out the data of the {again} steps from there"
        assert f"{text} ({count} of 10 times)" in said
    assert (left_out(tmp_path, 9), left_out(tmp_path, 18)) == (8, 12)
    assert steps(tmp_path, "train/loss") == list(range(1, 19))
    assert steps(tmp_path, "eval/loss") == [9, 18]


@pytest.mark.slow
def test_all_processes_go_back_to_the_weights_that_the_run_began_with(tmp_path, trained):
    codes, said = train(
        tmp_path,
        f"Run.init_from = '{trained.workdir}'",
        "NonFinite.policy = 'rewind'",
        *("NesT.block_repeats = (1, 1)", "NesT.num_hierarchies = 2"),
        processes=2,
        BAD_BATCHES="1,4",
    )
    assert codes == [0, 0], said
    assert said.count("Going back to step 0") == 2
    assert said.count("starting from ") == 3
    assert left_out(tmp_path, 18) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "code", "evaluated"),
    [("stop", 1, [9]), ("skip", 0, [9, 18]), ("rewind", 0, [9, 18])],
)
def test_an_evaluation_that_is_not_finite_follows_the_policy(policy, code, evaluated, tmp_path):
    codes, said = train(tmp_path, f"NonFinite.policy = '{policy}'", BAD_EVALUATIONS="0")
    assert codes == [code], said
    assert "test loss nan" in said
    assert steps(tmp_path, "eval/loss") == evaluated
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert (tmp_path / "checkpoints" / "9").exists()
    if policy == "rewind":
        assert "eval/loss is nan at step 9" in said
        assert "Going back to step 0 and leaving out the data of the 9 steps" in said
        assert left_out(tmp_path, 18) == 9
    if policy == "stop":
        # The evaluation is still missing: the same command makes it again, and goes on.
        codes, said = train(tmp_path, f"NonFinite.policy = '{policy}'")
        assert codes == [0], said
        assert steps(tmp_path, "eval/loss") == [9, 18]
