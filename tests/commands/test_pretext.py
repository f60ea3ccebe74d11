"""Learning without labels from the command line, and what others make of its checkpoint."""

import re

import numpy as np
import pytest
from support import commands

import nest_dist
from nest_dist.base import failures

SHORT = ("Run.num_epochs = '4 steps'", "Evaluation.every_epochs = '4 steps'")
SHORT += ("Cadence.save_every_epochs = '4 steps'", "Cosine.warmup_epochs = '1 steps'")
OBJECTIVES = {
    "masked": ("Step.objective = @MaskedImages()", "MaskedImages.unit = 8"),
    "two views": (
        "Step.objective = @TwoViews()",
        "TwoViews.width = 8",
        "TrainingData.views = 2",
    ),
}


def succeeds(*arguments):
    done = commands.nest_dist(*arguments, succeeds=True)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_classifier_starts_from_a_run_without_labels(objective, tmp_path):
    workdir = tmp_path / "pretrained"
    flags = commands.tiny_flags(workdir, *SHORT, *OBJECTIVES[objective])
    said = succeeds("train", *flags)
    assert re.search(r"test loss \d+\.\d+$", said, flags=re.MULTILINE)
    (line,) = [line for line in commands.metrics(workdir) if "eval/loss" in line]
    assert np.isfinite(line["eval/loss"])
    assert "eval/top_1" not in line
    assert "complete at step 4" in succeeds("train", *flags)
    assert f"{line['eval/loss']:.4f}" in succeeds("evaluate", f"--workdir={workdir}")

    loaded = nest_dist.load(workdir)
    pictures = np.zeros((2, 16, 16, 1), np.uint8)
    assert loaded.features(pictures).shape == (2, 16)
    assert loaded.class_names == ()
    assert not any(name.startswith("objective") for name in loaded.variables["params"])
    with pytest.raises(failures.BadInput, match=r"the model has no head; fine-tune it on classes"):
        loaded.predict(pictures)

    classifier = (*SHORT, f"Run.init_from = '{workdir}'")
    said = succeeds("train", *commands.tiny_flags(tmp_path / "classifier", *classifier))
    assert "reinitialized for other classes: head/bias, head/kernel" in said
    assert "test top-1" in said
    done = commands.nest_dist("evaluate", f"--workdir={workdir}", f"--checkpoint={workdir}")
    assert done.returncode == 2
    assert "whose own parameters no weights hold; give --step." in commands.cause(done.stderr)
    said = succeeds("replay", str(workdir), "--step=3", f"--output={tmp_path}/replay")
    assert "to the last digit" in said
