"""What a changed configuration means for a run: nothing, another course, or another run."""

import pytest
from support import commands

from nest_dist.base import failures
from nest_dist.config import run_json
from nest_dist.experiment import changes
from nest_dist.experiment import run as runs
from nest_dist.experiment.changes import Effect


def document(*bindings):
    return run_json.dump(runs.load(["runs/quickstart.gin"], [*commands.TINY, *bindings]))


@pytest.mark.parametrize(
    ("binding", "key", "effect"),
    [
        ("Run.seed = 1", "Run.seed", Effect.ANOTHER_RUN),
        ("Run.global_batch = 16", "Run.global_batch", Effect.ANOTHER_RUN),
        ("NesT.dim = 16", "NesT.dim", Effect.ANOTHER_RUN),
        ("PaddedCrop.padding = 1", "PaddedCrop.padding", Effect.ANOTHER_RUN),
        ("NesT.stochastic_depth = 0.1", "NesT.stochastic_depth", Effect.CHANGES),
        ("NesT.remat = 'layer'", "NesT.remat", Effect.NONE),
        ("AdamW.beta_2 = 0.9", "AdamW.beta_2", Effect.CHANGES),
        ("Run.num_epochs = 30", "Run.num_epochs", Effect.CHANGES),
        ("Classification.label_smoothing = 0.1", "Classification.label_smoothing", Effect.CHANGES),
        ("Step.reproducible_reduction = True", "Step.reproducible_reduction", Effect.CHANGES),
        ("MeshShape.fsdp = 2", "MeshShape.fsdp", Effect.NONE),
        ("Cadence.log_every_steps = 7", "Cadence.log_every_steps", Effect.NONE),
        ("Retention.last = 7", "Retention.last", Effect.NONE),
        ("TrainingData.workers = 2", "TrainingData.workers", Effect.NONE),
        ("train/Digits.split = 'test'", "Run.data.source.split", Effect.NONE),
        ("evaluate/Digits.split = 'train'", "Run.evaluations.data.source.split", Effect.NONE),
    ],
)
def test_each_key_says_what_it_does_to_the_run(binding, key, effect):
    (change,) = changes.between(document(), document(binding))
    assert (change.binding, change.effect) == (key, effect)
    assert f"{change.binding} was {change.before}, is {change.after}: {effect.value}" == str(change)


@pytest.mark.parametrize("binding", ["virtual_shards = 2", "window = 3"])
def test_another_order_of_parquet_is_another_run_but_for_evaluations(binding):
    def with_parquet(*more):
        parquet = ("Parquet.files = ('a',)", "Parquet.split = 'train'")
        sources = [f"{data}Data.source = @Parquet()" for data in ("Training", "Evaluation")]
        imported = "import nest_dist.data.sources.parquet"
        return document(imported, *parquet, *sources, *more)

    field = binding.partition(" ")[0]
    training, evaluating = changes.between(with_parquet(), with_parquet(f"Parquet.{binding}"))
    assert training.binding == f"Run.data.source.{field}"
    assert training.effect is Effect.ANOTHER_RUN
    assert evaluating.binding == f"Run.evaluations.data.source.{field}"
    assert evaluating.effect is Effect.NONE


def test_an_object_that_is_new_brings_all_its_keys():
    mixing = ("Inputs.mixing = @Mixing()", "Mixing.mixup_alpha = 0.8", "Mixing.cutmix_alpha = 1.0")
    found = changes.between(document(), document(*mixing))
    assert {"Inputs.mixing", "Mixing.mixup_alpha"} <= {change.binding for change in found}
    assert {change.effect for change in found} == {Effect.CHANGES}


def test_the_same_configuration_has_no_changes():
    assert changes.between(document(), document()) == []


def test_another_run_is_refused_unless_it_is_allowed():
    found = changes.between(
        document(), document("Run.seed = 1", "NesT.dim = 16", "AdamW.beta_2 = 0.9")
    )
    with pytest.raises(failures.BadInput) as refusal:
        changes.require_same_run(found, allowed=False)
    assert str(refusal.value) == (
        "NesT.dim is 16, the checkpoint of this workdir was made with 8 (and 1 more); set it back, "
        "start anew in another --workdir, or give --allow_config_change to go on all the same."
    )
    changes.require_same_run(found, allowed=True)
