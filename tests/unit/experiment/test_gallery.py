import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.experiment import gallery
from nest_dist.train.objectives import classification

NAMES = ("circle", "square", "star")


@pytest.mark.parametrize(("guess", "right"), [(0, False), (2, True)])
def test_a_picture_is_shown_with_its_true_and_its_predicted_class(guess, right):
    caption = gallery.judged([2], guess, NAMES)
    assert caption.lines == ("true: star", f"pred: {NAMES[guess]}")
    assert caption.right == right


@pytest.mark.parametrize(
    ("labels", "guess", "text", "right"),
    [((0, 2), 2, "circle, star", True), ((0, 2), 1, "circle, star", False), ((), 1, "none", False)],
)
def test_a_picture_of_several_classes_is_shown_with_all(labels, guess, text, right):
    caption = gallery.judged(labels, guess, NAMES)
    assert caption.lines[0] == f"true: {text}"
    assert caption.right == right


@pytest.mark.parametrize("label", range(3))
def test_a_model_that_gives_nan_is_shown_to_predict_no_class(label):
    (guess,) = classification.predicted(jnp.full((1, 3), jnp.nan)).tolist()
    caption = gallery.judged([label], guess, NAMES)
    assert caption.lines == (f"true: {NAMES[label]}", "pred: NaN")
    assert not caption.right


@pytest.mark.parametrize(
    ("shares", "lines"),
    [
        ([0.0, 1.0, 0.0], ["square"]),
        ([0.3, 0.0, 0.7], ["70% star", "30% circle"]),
        ([0.996, 0.002, 0.002], ["circle"]),
        ([0.5, 0.2, 0.3], ["50% circle", "30% star"]),
    ],
)
def test_a_mixed_picture_tells_its_largest_classes(shares, lines):
    assert gallery.label_text(np.array(shares), NAMES) == lines
