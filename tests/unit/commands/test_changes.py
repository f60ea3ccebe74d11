"""What a changed configuration means for a run: nothing, another course, or another run."""

import pytest
from support import commands

from nest_dist.base import failures
from nest_dist.commands import changes, configuration
from nest_dist.commands.changes import Effect

SHORT = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 0.05",
    "Run.save_every_epochs = 0.05",
    "Run.evaluate_every_epochs = 0.05",
    "AdamW.warmup_epochs = 0",
)


def text(*bindings):
    configuration.load(["runs/quickstart.gin"], [*commands.TINY, *bindings])
    return configuration.text()


@pytest.mark.parametrize(
    ("binding", "key", "effect"),
    [
        ("Run.seed = 1", "Run.seed", Effect.ANOTHER_RUN),
        ("Run.global_batch = 16", "Run.global_batch", Effect.ANOTHER_RUN),
        ("NesT.dim = 16", "NesT.dim", Effect.ANOTHER_RUN),
        ("PaddedCrop.padding = 1", "PaddedCrop.padding", Effect.ANOTHER_RUN),
        ("train/Digits.split = 'test'", "train/Digits.split", Effect.ANOTHER_RUN),
        ("NesT.stochastic_depth = 0.1", "NesT.stochastic_depth", Effect.CHANGES),
        ("NesT.remat = 'layer'", "NesT.remat", Effect.NONE),
        ("AdamW.beta_2 = 0.9", "AdamW.beta_2", Effect.CHANGES),
        ("Run.num_epochs = 30", "Run.num_epochs", Effect.CHANGES),
        ("Run.label_smoothing = 0.1", "Run.label_smoothing", Effect.CHANGES),
        ("Run.reproducible_reduction = True", "Run.reproducible_reduction", Effect.CHANGES),
        ("MeshShape.fsdp = 2", "MeshShape.fsdp", Effect.NONE),
        ("Run.log_every_steps = 7", "Run.log_every_steps", Effect.NONE),
        ("Keep.last = 7", "Keep.last", Effect.NONE),
        ("TrainingData.workers = 2", "TrainingData.workers", Effect.NONE),
        ("evaluate/Digits.split = 'train'", "evaluate/Digits.split", Effect.NONE),
    ],
)
def test_each_key_says_what_it_does_to_the_run(binding, key, effect):
    (change,) = changes.between(text(), text(binding))
    assert (change.key, change.effect) == (key, effect)
    assert f"{key} was {change.before}, is {change.after}: {effect.value}" == str(change)


def test_an_object_that_is_new_brings_all_its_keys():
    mixing = ("Run.mixing = @Mixing()", "Mixing.mixup_alpha = 0.8", "Mixing.cutmix_alpha = 1.0")
    found = changes.between(text(), text(*mixing))
    assert {"Run.mixing", "Mixing.mixup_alpha"} <= {change.key for change in found}
    assert {change.effect for change in found} == {Effect.CHANGES}


def test_the_same_configuration_has_no_changes():
    assert changes.between(text(), text()) == []


def test_another_run_is_refused_unless_it_is_allowed():
    found = changes.between(text(), text("Run.seed = 1", "NesT.dim = 16", "AdamW.beta_2 = 0.9"))
    with pytest.raises(failures.BadInput) as refusal:
        changes.require_same_run(found, allowed=False)
    assert str(refusal.value) == (
        "NesT.dim is 16, the checkpoint of this workdir was made with 8 (and 1 more); set it back, "
        "start anew in another --workdir, or give --allow_config_change to go on all the same."
    )
    changes.require_same_run(found, allowed=True)


def test_a_resumed_run_says_refuses_and_allows(tmp_path):
    def train(*bindings, allow=()):
        flags = commands.tiny_flags(tmp_path, *SHORT, *bindings)
        return commands.nest_dist("train", *flags, *allow, timeout=600)

    assert train().returncode == 0
    kept = sorted((tmp_path / "checkpoints").iterdir())
    refused = train("Run.seed = 1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("nest-dist: Run.seed is 1, the checkpoint of this workdir")
    assert len(refused.stderr.splitlines()) == 1
    assert sorted((tmp_path / "checkpoints").iterdir()) == kept
    allowed = train("Run.seed = 1", "Run.num_epochs = 0.1", allow=["--allow_config_change"])
    assert allowed.returncode == 0, allowed.stderr
    for line in (
        "configuration changed: Run.seed was 0, is 1: the checkpoint belongs to another run",
        "configuration changed: Run.num_epochs was 0.05, is 0.1: the run goes on differently",
    ):
        assert line in allowed.stdout
