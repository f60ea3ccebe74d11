import json
import os

import gin
import jax
import numpy as np
import pytest
from support import family

import nest_dist
from nest_dist.base import failures, tree_paths
from nest_dist.checkpointing import manager, retention
from nest_dist.pretrained import description, variants
from nest_dist.pretrained.formats import safetensors_file


def refused(message, where, **fields):
    with pytest.raises(failures.BadInput, match=message) as error:
        nest_dist.load(where, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_one_line_gives_a_trained_model_with_its_preprocessing(trained, pictures):
    loaded = nest_dist.load(trained.workdir)
    paths, images = pictures
    assert loaded.class_names == ("circle", "square", "star")
    np.testing.assert_allclose(
        loaded.logits(loaded.preprocess(paths)), trained.logits(images), atol=1e-5
    )
    np.testing.assert_array_equal(loaded.preprocess(paths[1])[0], loaded.preprocess(paths)[1])
    assert loaded.notes[0].startswith("nest_dist weights of a NesT of 2 levels")


def params_of(loaded):
    return tree_paths.flatten(loaded.variables["params"])


@pytest.mark.parametrize("folder", ["", "checkpoints", "checkpoints/7"])
def test_a_workdir_its_checkpoints_and_one_of_them_can_be_named(folder, trained):
    params = params_of(nest_dist.load(str(trained.workdir / folder)))
    np.testing.assert_array_equal(params["norm/scale"], trained.params["norm/scale"])


def test_an_older_step_can_be_named_in_two_ways(trained):
    for loaded in (
        nest_dist.load(trained.workdir, step=3),
        nest_dist.load(trained.workdir / "checkpoints" / "3"),
    ):
        np.testing.assert_array_equal(
            params_of(loaded)["norm/scale"], 2 * trained.params["norm/scale"]
        )


def test_of_a_run_that_keeps_a_moving_average_the_average_is_used(trained, tmp_path):
    params = tree_paths.unflatten(trained.params)
    state = {"params": params, "ema": jax.tree.map(lambda leaf: 3 * leaf, params)}
    checkpoints = manager.Manager(tmp_path / "checkpoints", retention=retention.Retention())
    metadata = {"run": json.loads((trained.workdir / "run.json").read_text())}
    checkpoints.save(1, jax.tree.map(jax.numpy.asarray, state), metadata)
    checkpoints.close()
    params = params_of(nest_dist.load(tmp_path))
    assert params.keys() == trained.params.keys()
    np.testing.assert_array_equal(params["norm/scale"], 3 * trained.params["norm/scale"])


def test_reading_leaves_what_a_run_is_saving_alone(trained):
    saving = trained.workdir / "checkpoints" / "9.saving"
    saving.mkdir()
    nest_dist.load(trained.workdir)
    assert saving.is_dir()
    saving.rmdir()


def test_fields_change_and_weights_are_adapted(trained):
    loaded = nest_dist.load(trained.workdir, num_classes=9, image_size=32, compute_dtype="bfloat16")
    assert loaded.class_names == ()
    unchanged, resized, reinitialized = loaded.notes[1:]
    assert unchanged == "40 parameters loaded as they are"
    assert resized.startswith("resized to another image: levels_0/position_embedding [1, 4, 4, 8]")
    assert resized.endswith(" levels_1/position_embedding [1, 1, 4, 16] to [1, 1, 16, 16]")
    assert reinitialized == "reinitialized for other classes: head/bias, head/kernel"
    head = loaded.variables["params"]["head"]
    assert np.all(head["bias"] == 0)
    assert 0.01 < np.std(head["kernel"]) < 0.02  # 0.02 before truncation at two deviations
    assert loaded.logits(np.zeros((2, 32, 32, 1), np.float32)).shape == (2, 9)


def test_another_gelu_than_that_of_the_weights_is_pointed_out(trained):
    loaded = nest_dist.load(trained.workdir, gelu="exact")
    assert loaded.notes[-1] == (
        "NesT.gelu is 'exact', that of the weights is 'tanh': bind NesT.gelu = 'tanh' for the same "
        "outputs"
    )


def test_the_name_of_a_variant_gives_it_with_initial_values():
    loaded = nest_dist.load("nest_micro", num_classes=4)
    assert loaded.model == variants.models()["nest_micro"].clone(num_classes=4)
    assert loaded.notes == ("initial values, not trained",)
    assert loaded.logits(np.zeros((1, 32, 32, 1), np.float32)).shape == (1, 4)


def test_every_shipped_model_is_a_variant_and_equals_what_gin_makes_of_its_file():
    assert set(family.PUBLISHED) < set(variants.models())
    for name in family.PUBLISHED:
        assert variants.models()[name] == family.published(name)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nest_tyni", r"nest_tyni is no file, .* and no variant of NesT; did you mean nest_tiny"),
        ("resnet", r"resnet is no file, no folder and no variant of NesT; known are cifar_nest_b"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(where, message):
    refused(message, where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "runs/digist",
            r"runs/digist is not there: no file or folder {}/runs/digist; did you mean digits\? E",
        ),
        (
            "{}/digits",
            r"/digits is not there: no file or folder {}/digits; give a file of weights, a w",
        ),
        (
            "one.safetensors",
            r"no file or folder {}/one.safetensors; did you mean once.safetensors\? ",
        ),
        (
            "a/b/c",
            r"a/b/c is not there: no file or folder {}/a/b/c; give a file of weights, a workdir, ",
        ),
    ],
)
def test_a_missing_path_is_no_matter_of_the_network(where, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "once.safetensors").touch()
    refused(message.format(tmp_path), where.format(tmp_path))


def test_what_is_missing_or_does_not_fit_is_refused(trained, tmp_path):
    refused(r"checkpoints has no checkpoint of step 4; give one of 3, 7\.", trained.workdir, step=4)
    refused(r"colour is no field of NesT; known are image_size, patch", trained.workdir, colour=1)
    refused(r"NesT.dim is 16, the weights to start from have 8; only ", trained.workdir, dim=16)
    os.mkfifo(tmp_path / "pipe")
    refused(r"pipe is neither a file nor a folder; give a file of weights or a", tmp_path / "pipe")
    refused(r" is a folder with 0 files of weights and no checkpoints of a run; give", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    refused(r"checkpoints has no checkpoint yet; train first\.", tmp_path)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"block_repeats": [2, 10**9]}, "NesT.block_repeats is 1000000000; it must be in"),
        ({"block_repeats": [2, 300]}, "is of a NesT of 302 layers, and has \\d+ arrays; give"),
        ("[" * 100_000, r"describes its model wrongly \(JSON of too many levels\)"),
        ("[" * 900 + "]" * 900, r"describes its model wrongly \(JSON of more than 32 levels\)"),
    ],
)
def test_a_description_that_multiplies_is_refused(described, message, trained, tmp_path):
    metadata = description.texts(trained.model)
    model = json.loads(metadata["nest_dist.model"])
    text = described if isinstance(described, str) else json.dumps({**model, **described})
    path = tmp_path / "model.safetensors"
    safetensors_file.write(path, trained.params, {**metadata, "nest_dist.model": text})
    refused(message, path)


def test_a_folder_with_one_file_of_weights_stands_for_it(trained, tmp_path):
    safetensors_file.write(tmp_path / "model.safetensors", trained.params, {})
    assert nest_dist.load(tmp_path).model == trained.model
    file = tmp_path / "model.safetensors"
    refused(r"--step is 3, but .*model.safetensors is a file of weights, which has", file, step=3)
    safetensors_file.write(tmp_path / "other.safetensors", trained.params, {})
    refused(r" is a folder with 2 files of weights", tmp_path)


def test_loading_leaves_the_gin_of_the_caller_alone(trained):
    with gin.config.unlock_config():
        gin.clear_config()
        gin.bind_parameter("NesT.dim", 12345)
        loaded = nest_dist.load(trained.workdir)
        assert loaded.model.dim == 8
        assert gin.query_parameter("NesT.dim") == 12345
        gin.clear_config()
