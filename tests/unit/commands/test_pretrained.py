import pathlib
import sys
import types

import gin
import numpy as np
import pytest
from support import family

import nest_dist
from nest_dist.base import failures, names
from nest_dist.checkpointing import safetensors_file
from nest_dist.commands import preprocessing, recorded, variants

pytestmark = pytest.mark.usefixtures("quick_compilation")


def refused(message, where, **fields):
    with pytest.raises(failures.BadInput, match=message) as error:
        nest_dist.load(where, **fields)
    assert "\n" not in str(error.value)


def test_one_line_gives_a_trained_model_with_its_preprocessing(trained, pictures):
    loaded = nest_dist.load(trained.workdir)
    paths, images = pictures
    assert loaded.class_names == ("circle", "square", "star")
    np.testing.assert_allclose(
        loaded.logits(loaded.preprocess(paths)), trained.logits(images), atol=1e-5
    )
    np.testing.assert_array_equal(loaded.preprocess(paths[1])[0], loaded.preprocess(paths)[1])
    assert loaded.notes[0].startswith("nest_dist weights of a NesT of 2 levels")


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/7"])
def test_a_workdir_its_checkpoints_and_one_of_them_can_be_named(place, trained):
    loaded = nest_dist.load(str(trained.workdir / place))
    found = names.flatten(loaded.variables["params"])
    np.testing.assert_array_equal(found["norm/scale"], trained.params["norm/scale"])


def test_an_older_step_can_be_named_in_two_ways(trained):
    for loaded in (
        nest_dist.load(trained.workdir, step=3),
        nest_dist.load(trained.workdir / "checkpoints" / "3"),
    ):
        found = names.flatten(loaded.variables["params"])
        np.testing.assert_array_equal(found["norm/scale"], 2 * trained.params["norm/scale"])


def test_reading_leaves_what_a_run_is_saving_alone(trained):
    saving = trained.workdir / "checkpoints" / "9.orbax-checkpoint-tmp"
    saving.mkdir()
    nest_dist.load(trained.workdir)
    assert saving.is_dir()
    saving.rmdir()


def test_fields_change_and_weights_are_adapted(trained):
    loaded = nest_dist.load(trained.workdir, num_classes=9, image_size=32, compute_dtype="bfloat16")
    assert loaded.class_names == ()
    taken, resized, renewed = loaded.notes[1:]
    assert taken == "40 parameters taken as they are"
    assert resized.startswith("resized to another image: levels_0/position_embedding [1, 4, 4, 8]")
    assert resized.endswith(" levels_1/position_embedding [1, 1, 4, 16] to [1, 1, 16, 16]")
    assert renewed == "initialised anew for other classes: head/bias, head/kernel"
    head = loaded.variables["params"]["head"]
    assert np.all(head["bias"] == 0)
    assert 0.01 < np.std(head["kernel"]) < 0.02  # 0.02 before truncation at two deviations
    assert loaded.logits(np.zeros((2, 32, 32, 1), np.float32)).shape == (2, 9)


def test_another_gelu_than_that_of_the_weights_is_pointed_out(trained):
    loaded = nest_dist.load(trained.workdir, gelu="exact")
    assert loaded.notes[-1] == (
        "NesT.gelu is 'exact', the weights were made with 'tanh': bind it so for the same outputs"
    )


def test_the_name_of_a_variant_gives_it_with_first_values():
    loaded = nest_dist.load("nest_micro", num_classes=4)
    assert loaded.model == variants.models()["nest_micro"].clone(num_classes=4)
    assert loaded.notes == ("first values, not trained",)
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


def test_what_is_not_there_or_does_not_fit_is_refused(trained, tmp_path):
    refused(r"there is no checkpoint of step 4 in .*; there are 3, 7\.", trained.workdir, step=4)
    refused(r"colour is no field of NesT; there are attention_dropout, ", trained.workdir, colour=1)
    refused(r"NesT.dim is 16, the weights to start from have 8; only ", trained.workdir, dim=16)
    refused(r" is a folder with 0 files of weights and no checkpoints of a run; give", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    refused(r"checkpoints has no checkpoint yet; train first\.", tmp_path)


def test_a_folder_with_one_file_of_weights_stands_for_it(trained, tmp_path):
    safetensors_file.write(tmp_path / "model.safetensors", trained.params, {})
    assert nest_dist.load(tmp_path).model == trained.model
    safetensors_file.write(tmp_path / "other.safetensors", trained.params, {})
    refused(r" is a folder with 2 files of weights", tmp_path)


@pytest.fixture
def hub(monkeypatch, trained, tmp_path):
    """A Hub with one repository, of which one file is missing."""
    safetensors_file.write(tmp_path / "weights", trained.params, {})
    module = types.ModuleType("huggingface_hub")
    missing = type("EntryNotFoundError", (Exception,), {})
    offline = type("LocalEntryNotFoundError", (missing,), {})
    module.errors = types.SimpleNamespace(
        EntryNotFoundError=missing, LocalEntryNotFoundError=offline
    )
    module.utils = types.SimpleNamespace(
        logging=types.SimpleNamespace(set_verbosity_error=lambda: None)
    )

    def download(repository, name):
        if repository == "them/offline":
            raise offline("no network\nand a long story")
        if repository == "them/empty" or name == "model.safetensors":
            raise missing("404")
        return str(tmp_path / "weights")

    module.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_an_id_is_looked_for_on_the_hugging_face_hub(hub, trained):
    assert nest_dist.load("me/my-nest").model == trained.model
    refused(r"them/offline is no path here and cannot be fetched .* \(no network\); give a path", (
        "them/offline"
    ))  # fmt: skip
    refused(r"the repository them/empty has none of model.safetensors, pytorch_m", "them/empty")


def test_without_huggingface_hub_an_id_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(r"me/my-nest is no path here; .* `pip install nest-dist\[hub\]`", "me/my-nest")


def test_loading_leaves_the_gin_of_the_caller_alone(trained):
    with gin.config.unlock_config():
        gin.clear_config()
        gin.bind_parameter("NesT.dim", 12345)
        loaded = nest_dist.load(trained.workdir)
        assert loaded.model.dim == 8
        assert gin.query_parameter("NesT.dim") == 12345
        gin.clear_config()


def test_a_recorded_configuration_makes_objects_of_this_package_only():
    text = recorded.Recorded("import subprocess\nA.b = @Popen()\nPopen.args = ('touch', 'x')")
    with pytest.raises(failures.BadInput, match=r"uses Popen, which is none of nest_dist's own"):
        text.value("A", "b")
    with pytest.raises(failures.BadInput, match=r"uses Digits, which is none of nest_dist's own"):
        recorded.Recorded("import nest_dist.data.sources.digits\nA.b = @Digits()").value("A", "b")
    with pytest.raises(
        failures.BadInput, match=r"cannot be read \(.*\); the checkpoint is damaged"
    ):
        recorded.Recorded("NesT.dim = = 3")


def prepared(model, picture, configuration=None):
    return preprocessing.of_model(model, configuration).images([picture])[0]


def test_without_a_configuration_the_middle_is_cut_as_for_the_published_weights():
    model = family.small("multi_head", image_size=112)
    picture = np.zeros((256, 512, 3), np.uint8)
    picture[:, 256 - 112 : 256 + 112] = 200  # what 112 of 128 pixels show of 256
    image = prepared(model, picture)
    assert image.shape == (112, 112, 3)
    assert np.all(image[:, 1:-1] == 200)
    assert np.all(prepared(model, picture[:, :, ::-1].copy()) == image)
    scale = preprocessing.of_model(model, None).pixels
    assert scale.mean == (0.485, 0.456, 0.406)


def test_a_small_model_sees_the_whole_height_of_a_picture():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[0], picture[-1] = 100, 200
    image = prepared(family.small("multi_head"), picture)
    assert image.shape == (32, 32, 3)
    assert np.all(image[0] >= 50)
    assert np.all(image[-1] >= 100)


def test_a_wide_model_sees_the_middle_of_a_picture_in_its_own_shape():
    model = family.small("wide_image", image_size=(16, 32), num_channels=3)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48] = 90
    image = prepared(model, picture)
    assert image.shape == (16, 32, 3)
    assert np.all(image == 90)


def test_the_transforms_of_the_run_are_used_where_they_fit(trained):
    configuration = (pathlib.Path(trained.workdir) / "config.gin").read_text()
    small = np.full((10, 10, 1), 7, np.uint8)
    image = prepared(trained.model, small, configuration)
    assert image.sum() == 700  # padded, not resized
    large = np.full((100, 60, 1), 7, np.uint8)
    assert np.all(prepared(trained.model, large, configuration) == 7)


def test_colours_become_grey_and_grey_becomes_colours(trained):
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[..., 1] = 100
    assert np.all(prepared(trained.model, colour) == 59)  # luminance of green
    grey = np.full((32, 32, 1), 9, np.uint8)
    image = prepared(family.small("multi_head"), grey)
    assert image.shape == (32, 32, 3)
    assert np.all(image == 9)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"a picture is an array float32\[4, 4, 3\]; give uint8"),
        (
            np.zeros((4, 4), np.uint8),
            r"a picture is an array uint8\[4, 4\]; give uint8 \[H, W, C\]",
        ),
        (np.zeros((4, 4, 4), np.uint8), r"a picture has 4 channels, the model takes 1; convert"),
        (b"hello", r"the picture is no picture that can be decoded \(unknown.*\); give JPEG, PNG"),
        ("/no/such", r"/no/such cannot be read \(No such file or directory\); give the path of a"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message, trained):
    with pytest.raises(failures.BadInput, match=message):
        prepared(trained.model, picture)
