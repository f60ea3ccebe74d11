import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

import nest_dist
from nest_dist.base import failures
from nest_dist.pretrained import outputs


@pytest.fixture(scope="module")
def loaded(trained):
    return nest_dist.load(trained.workdir)


def test_the_likeliest_classes_come_with_names_and_probabilities(loaded, pictures):
    paths, images = pictures
    expected = np.asarray(jax.nn.softmax(loaded.logits(loaded.preprocess(images))))
    for best, row in zip(loaded.predict(paths, top=2), expected, strict=True):
        assert [each.label for each in best] == list(np.argsort(-row)[:2])
        assert best[0].name == ("circle", "square", "star")[best[0].label]
        assert best[0].probability == pytest.approx(row.max(), abs=1e-5)


def test_pictures_come_in_every_form(loaded, pictures):
    paths, images = pictures
    expected = loaded.preprocess(paths)
    with open(paths[0], "rb") as file:
        encoded = file.read()
    opened = [Image.open(path) for path in paths]
    forms = {
        "paths": paths,
        "a batch": images,
        "a list of arrays": list(images),
        "grey without channels": [image[..., 0] for image in images],
        "a list of Pillow's": opened,
    }
    for name, pictures_in_this_form in forms.items():
        np.testing.assert_array_equal(loaded.preprocess(pictures_in_this_form), expected, name)
    for one in (encoded, opened[0], images[0], images[0][..., 0], paths[0]):
        np.testing.assert_array_equal(loaded.preprocess(one), expected[:1])


def test_colours_of_pillow_are_those_of_the_file(loaded):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    np.testing.assert_array_equal(
        loaded.preprocess(Image.fromarray(pixels)), loaded.preprocess(file.getvalue())
    )
    palette = Image.fromarray(pixels).convert("P")
    assert loaded.preprocess(palette).shape == (1, 16, 16, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "pictures are list; give a path, bytes, an image of Pillow"),
        (3, "pictures are int; give a path, bytes, an image of Pillow"),
        ([3], "a picture is int; give a path, bytes, an image of Pillow, or a uint8 array."),
    ],
)
def test_what_is_no_picture_is_refused(given, message, loaded):
    with pytest.raises(failures.BadInput, match=message):
        loaded.preprocess(given)


def test_features_are_those_of_the_head_and_of_each_level(loaded, trained, pictures):
    _, images = pictures
    features = loaded.features(images)
    head = loaded.variables["params"]["head"]
    logits = loaded.logits(loaded.preprocess(images))
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-4
    )
    assert loaded.features(images, level=0).shape == (3, 4, 4, 8)
    last = loaded.features(images, level=-1)
    np.testing.assert_array_equal(last, loaded.features(images, level=1))
    assert last.shape == (3, 2, 2, 16)
    with pytest.raises(failures.BadInput, match=r"level is 2; it must be in \[-2, 1\]"):
        loaded.features(images, level=2)


def test_batches_of_any_length_give_the_same(monkeypatch):
    images = np.arange(7.0)[:, None]
    monkeypatch.setattr(outputs, "LARGEST_BATCH", 3)
    sizes = []

    def double(batch):
        sizes.append(len(batch))
        return 2 * batch

    np.testing.assert_array_equal(outputs.in_batches(double, images), 2 * images)
    assert sizes == [3, 3, 3]


def test_a_model_without_head_predicts_nothing():
    with pytest.raises(failures.BadInput, match="the model has no head; fine-tune it"):
        nest_dist.load("nest_micro", num_classes=0).predict(np.zeros((32, 32), np.uint8))


def test_probabilities_that_are_nan_are_refused():
    with pytest.raises(failures.BadInput, match="the probabilities of a picture are NaN"):
        outputs.predictions(lambda batch: batch * np.nan, np.ones((1, 2)), ["a", "b"], 1)


def test_a_model_is_told_in_a_few_lines(loaded, trained):
    lines = repr(loaded).splitlines()
    assert len(lines) <= 7
    assert lines[0] == "nest_dist.Pretrained"
    assert "classes  3: circle, square, star" in repr(loaded)
    assert "image    16 x 16 pixels, grey" in repr(loaded)
    assert str(trained.workdir) in repr(loaded)
    page = loaded._repr_html_()
    assert page.startswith("<table>")
    assert "circle, square, star" in page


def test_names_are_escaped_in_a_notebook(loaded):
    odd = dataclasses.replace(loaded, class_names=("<b>", "a", "b"))
    assert "&lt;b&gt;, a, b" in odd._repr_html_()
