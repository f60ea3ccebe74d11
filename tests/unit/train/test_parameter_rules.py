"""Treatments by name: depth, patterns, freezing."""

import pytest
from support.refusals import refusal

from nest_dist.base import tree_paths
from nest_dist.train import parameter_rules

# From the pixels to the logits, with the layers that follow until the head, itself included.
DEPTHS = {
    "patch_embedding/kernel": 4,
    "levels_0/position_embedding": 4,
    "levels_0/layers_0/mlp/hidden/bias": 3,
    "aggregations_0/convolution/kernel": 3,
    "levels_1/position_embedding": 3,
    "levels_1/layers_0/attention/norm/scale": 2,
    "levels_1/layers_1/attention/norm/scale": 1,
    "norm/scale": 0,
    "head/kernel": 0,
    "objective/decoder/kernel": 0,
}


def built(**fields):
    return parameter_rules.ParameterRules(**fields).build(("*/position_embedding",), (1, 2))


def test_the_rate_falls_from_layer_to_layer():
    treatments = built(layer_decay=0.5)
    found = {name: treatments(name).multiplier for name in DEPTHS}
    assert found == {name: 0.5**depth for name, depth in DEPTHS.items()}
    assert {built()(name).multiplier for name in DEPTHS} == {1.0}


def test_the_last_pattern_that_fits_counts():
    treatments = built(
        learning_rates=(("*/kernel", 2.0), ("head/*", 10.0)),
        weight_decays=(("*/bias", 0.0), ("levels_1/position_embedding", 0.3)),
    )
    treatments.require_fitting(DEPTHS)
    assert treatments("head/kernel").multiplier == 10
    assert treatments("patch_embedding/kernel").multiplier == 2
    assert treatments("norm/scale").multiplier == 1
    assert treatments("levels_0/layers_0/mlp/hidden/bias").decay == 0
    assert treatments("levels_0/position_embedding").decay == 0
    assert treatments("levels_1/position_embedding").decay == 0.3
    assert treatments("norm/scale").decay == 1


def test_a_split_is_undone_by_merging():
    params = tree_paths.unflatten({name: index for index, name in enumerate(DEPTHS)})
    treatments = built(frozen=("levels_0/*", "patch_embedding/*"))
    trained, frozen = treatments.split(params)
    assert set(frozen) == {"levels_0", "patch_embedding"}
    assert not set(frozen) & set(trained)
    assert parameter_rules.merged(trained, frozen) == params
    everything, nothing = built().split(params)
    assert everything is params
    assert parameter_rules.merged(everything, nothing) is params


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"frozen": ("level_0/*",)},
            (
                "'level_0/*' names parameters to freeze, but no parameter fits it; the names are "
                "like 'patch_embedding/kernel'."
            ),
        ),
        (
            {"learning_rates": (("heads/*", 2.0),)},
            "'heads/*' names parameters with a learning rate of their own, but no parameter fits",
        ),
        (
            {"weight_decays": (("*/biases", 0.0),)},
            "'*/biases' names parameters with a weight decay of their own, but no parameter fits",
        ),
        (
            {"frozen": ("*",)},
            "ParameterRules.frozen is ('*',), which leaves no parameter to train; freeze fewer.",
        ),
        (
            {"learning_rates": (("head/*", -1.0),)},
            "the factor of 'head/*' in ParameterRules.learning_rates is -1.0; it must be in",
        ),
        (
            {"weight_decays": (("head/*", float("nan")),)},
            "ParameterRules.weight_decays is nan; give a number below",
        ),
        ({"layer_decay": 0.0}, "ParameterRules.layer_decay is 0.0; it must be in (0, 1]"),
        ({"learning_rates": ("head/*", 2.0)}, "ParameterRules.learning_rates is ('head/*', 2.0)"),
    ],
)
def test_what_fits_nothing_is_refused_in_one_line(fields, text):
    with refusal(text) as raised:
        built(**fields).require_fitting(DEPTHS)
    assert "\n" not in str(raised.value)
