from nest_dist.base import tree_paths

TREE = {"levels_0": {"attention": {"query": {"kernel": 1, "bias": 2}}}, "head": {"kernel": 3}}


def test_flattening_names_every_leaf_by_its_path():
    assert tree_paths.flatten(TREE) == {
        "head/kernel": 3,
        "levels_0/attention/query/bias": 2,
        "levels_0/attention/query/kernel": 1,
    }


def test_unflattening_brings_the_tree_back():
    assert tree_paths.unflatten(tree_paths.flatten(TREE)) == TREE


def test_sequences_and_dataclasses_have_names_too():
    assert tree_paths.flatten((TREE["head"], [5])) == {"0/kernel": 3, "1/0": 5}


def test_mapping_gives_the_name_to_the_function():
    mapped = tree_paths.map_named(lambda name, leaf: f"{name}={leaf}", TREE["head"])
    assert mapped == {"kernel": "kernel=3"}


def test_a_star_crosses_slashes_but_a_pattern_fits_the_whole_name():
    assert tree_paths.matches("levels_0/position_embedding", ["*/position_embedding"])
    assert not tree_paths.matches("levels_0/position_embedding", ["position_embedding"])
    assert not tree_paths.matches("levels_0/position_embedding/x", ["*/position_embedding"])
