import os

import numpy as np
import pytest
from support import harness, program

RUN_ALONE = """
import sys
sys.modules["nest_dist"] = sys.modules["flax"] = sys.modules["gin"] = None  # cannot be imported
import jax.export
import numpy as np
exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
images = np.load("images.npy")
np.save("one.npy", exported.call(images[:1]))
np.save("all.npy", exported.call(images))
print(sorted(exported.platforms))
"""


def test_the_exported_program_runs_without_nest_dist_for_any_batch(trained, pictures, tmp_path):
    _, images = pictures
    said = program.succeeds(
        "export", f"--checkpoint={trained.workdir}", tmp_path / "model.stablehlo"
    )
    assert "uint8 images [B, 16, 16, 1] to float32 logits, any B, on cpu, tpu and cuda" in said
    np.save(tmp_path / "images.npy", images)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["JAX_PLATFORMS"] = "cpu"
    done = harness.python("-c", RUN_ALONE, folder=tmp_path, environment=environment, succeeds=True)
    assert done.stdout.strip() == "['cpu', 'cuda', 'tpu']"
    expected = trained.logits(images)
    np.testing.assert_allclose(np.load(tmp_path / "all.npy"), expected, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "one.npy"), expected[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=RUN"], "export got 0 paths; give one, OUT."),
        (["out"], "--checkpoint is not given; give a file of weights"),
        (["out", "--checkpoint=nest_tiny"], "nest_tiny is the name of a variant, which has no"),
        (["RUN/config.gin", "--checkpoint=RUN"], "config.gin exists already; remove it"),
    ],
)
def test_what_cannot_be_exported_is_refused(arguments, message, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.replace("RUN", str(trained.workdir)) for argument in arguments]
    assert message in program.refuses(monkeypatch, "export", *arguments)
    assert list(tmp_path.iterdir()) == []
