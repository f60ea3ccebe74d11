"""Every optimizer in a run: bound in gin, its state sharded, resumed by the names of its leaves."""

import jax
import optax
import pytest
from support import changing, commands

from nest_dist.base import failures, tree_paths
from nest_dist.experiment import build
from nest_dist.experiment import run as runs

pytestmark = pytest.mark.medium

NAMES = ("AdamW", "Adam", "SGD", "Lion", "LAMB", "Adafactor", "Muon")
MODULE = """
import gin
import optax

@gin.register
def belief(learning_rate):
    return optax.adabelief(learning_rate)
"""


def bindings(name, *more):
    rate = () if name == "AdamW" else (f"{name}.peak_learning_rate = 1e-3",)
    own = (*commands.TINY, *commands.ONE_LEVEL, "MeshShape.data = 1", "MeshShape.fsdp = 2")
    return [*own, "NesT.dim = 16", f"Step.optimizer = @{name}()", *rate, *more]


def built(run):
    return build.build(run, jax.devices()[:2])


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_an_optimizer_is_sharded_as_its_parameters(name):
    more = ("Adafactor.smallest_factored = 8",) if name == "Adafactor" else ()
    experiment = built(runs.load(["runs/quickstart.gin"], bindings(name, *more)))
    shapes = tree_paths.flatten(experiment.state_shapes.optimizer)
    params = tree_paths.flatten(experiment.state_shapes.params)
    moments = 0
    for leaf_name, leaf in shapes.items():
        of = [param for param in params if leaf_name.endswith(f"/{param}")]
        if of and leaf.shape == params[of[0]].shape and leaf.ndim:
            assert leaf.sharding == params[of[0]].sharding, leaf_name
            moments += 1
        else:
            assert leaf.sharding.is_fully_replicated, leaf_name
    assert moments >= (10 if name == "Adafactor" else len(params))


def test_a_transformation_of_the_user_is_named_in_gin(tmp_path, monkeypatch):
    (tmp_path / "my_optimizers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["import my_optimizers", *bindings("Optax", "Optax.transformation = @belief")]
    experiment = built(runs.load(["runs/quickstart.gin"], own))
    moments = experiment.state_shapes.optimizer[0]
    assert isinstance(moments, optax.ScaleByBeliefState)
    assert experiment.document["fields"]["step"]["fields"]["optimizer"]["fields"][
        "transformation"
    ] == {"class": "my_optimizers.belief", "fields": {}}


def test_rules_clipping_and_spikes_are_bound_in_gin_and_checked():
    more = (
        "Step.clipping = @ClipByGlobalNorm()",
        "ClipByGlobalNorm.limit = 1.0",
        "Step.spikes = @SpikeRule()",
        "ParameterRules.layer_decay = 0.75",
        "ParameterRules.learning_rates = (('head/*', 10.0),)",
        "ParameterRules.frozen = ('patch_embedding/*',)",
        "Run.num_epochs = '90 steps'",
        "Cosine.warmup_epochs = '10%'",
        "Cadence.save_every_epochs = '20 steps'",
        "Evaluation.every_epochs = '50%'",
    )
    run = runs.load(["runs/quickstart.gin"], bindings("AdamW", *more))
    experiment = built(run)
    intervals = experiment.intervals
    assert (intervals.num_steps, intervals.save_every, intervals.evaluate_every) == (90, 20, (45,))
    frozen = {entry.name for entry in experiment.audit() if entry.treatment.frozen}
    assert frozen == {"patch_embedding/bias", "patch_embedding/kernel"}
    assert not any(
        "patch_embedding" in n for n in tree_paths.flatten(experiment.state_shapes.optimizer)
    )
    wrong = changing.changed(run, {"step.parameters.frozen": ("patch_embed/*",)})
    with pytest.raises(failures.BadInput, match="'patch_embed/\\*' names parameters to freeze"):
        built(wrong).state_shapes.step  # noqa: B018
