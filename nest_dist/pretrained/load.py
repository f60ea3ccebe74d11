"""Models with their weights, from a file, a workdir or the Hugging Face Hub."""

import dataclasses
import functools
import pathlib
import typing
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np

from nest_dist.base import failures, tree_paths
from nest_dist.config import run_json
from nest_dist.model import nest
from nest_dist.pretrained import (
    outputs,
    recognition,
    summary,
    transfer,
    variants,
    weights,
)
from nest_dist.pretrained import preprocess as preprocessing
from nest_dist.pretrained import stored as stored_weights
from nest_dist.pretrained.formats import native
from nest_dist.train.objectives import multi_label


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
    """A model ready for use: `loaded.predict("cat.jpg")`.

    Attributes:
        model: the Linen module.
        variables: the first argument of its `apply`.
        preprocess: pictures -> float32 [B, H, W, C].
        class_names: the name of each logit; empty if they are not known.
        notes: lines on the source of the weights, and on how they were adapted.
        source: where they come from.
        sets: whether a picture may have any number of classes, as `MultiLabel` learns them.

    Example:
        >>> import numpy as np
        >>> import nest_dist
        >>> loaded = nest_dist.load("nest_micro", num_classes=10)
        >>> pictures = np.zeros((2, 32, 32, 1), np.uint8)
        >>> loaded.logits(loaded.preprocess(pictures)).shape
        (2, 10)
        >>> [len(best) for best in loaded.predict(pictures, top=3)]
        [3, 3]
        >>> loaded.features(pictures).shape, loaded.features(pictures, level=0).shape
        ((2, 64), (2, 8, 8, 32))
    """

    model: nest.NesT
    variables: Mapping[str, tree_paths.Tree]
    preprocess: preprocessing.Preprocessing
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    source: str = ""
    sets: bool = False

    def predict(
        self, pictures: preprocessing.Pictures, top: int = 5
    ) -> list[list[outputs.Prediction]]:
        """The likeliest classes of each picture, with their probabilities, the likeliest first.

        Args:
            pictures: whatever `preprocess` takes.
        Raises:
            BadInput: if the model has no head, or a picture cannot be decoded.
        """
        if not (classes := self.model.num_classes):
            raise failures.BadInput("the model has no head; fine-tune it on classes first.")
        names = self.class_names or [f"class {label}" for label in range(classes)]
        return outputs.predictions(self.probabilities, self.preprocess(pictures), names, top)

    def features(self, pictures: preprocessing.Pictures, level: int | None = None) -> np.ndarray:
        """What the head receives, float32 [B, C]; or the output of a level, [B, H, W, C].

        Args:
            pictures: whatever `preprocess` takes.
            level: from 0, the first, or from -1, the last, backwards; None for those of the head.
        Raises:
            BadInput: if there is no such level, or a picture cannot be decoded.
        """
        return outputs.features(self.model, self.variables, self.preprocess(pictures), level)

    def __repr__(self) -> str:
        return summary.text("nest_dist.Pretrained", self._summary())

    def _repr_html_(self) -> str:
        return summary.as_html("nest_dist.Pretrained", self._summary())

    def _summary(self) -> summary.Rows:
        name = recognition.name_of(self.model, variants.models())
        parameters = _num_parameters(self.model)
        return summary.rows(self.model, name, parameters, self.class_names, self.source, self.notes)

    def logits(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Float32 [B, classes] of preprocessed images [B, H, W, C]."""
        return self._apply(self.variables, images)

    def probabilities(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Of each class, float32 [B, classes] of preprocessed images: by `self.of_logits`."""
        return self.of_logits(self.logits(images))

    @property
    def of_logits(self) -> Callable[[jax.Array], jax.Array]:
        """From logits [B, classes] to probabilities, whose sum is 1 unless pictures have `sets`."""
        return jax.nn.sigmoid if self.sets else jax.nn.softmax

    @functools.cached_property
    def _apply(self) -> Callable[..., jax.Array]:
        return jax.jit(self.model.apply)


def load(where: str | pathlib.Path, step: int | None = None, **fields: object) -> Pretrained:
    """A model with weights and preprocessing.

    Args:
        where: a file of weights (safetensors, PyTorch, flax msgpack; nest_dist's, timm's or the
            official names), the workdir of a run, a repository of the Hugging Face Hub such as
            "hf:timm/nest_tiny_jx.goog_in1k", or the name of a variant such as "nest_tiny", which
            comes with initial values instead of trained weights.
        step: which checkpoint of a workdir; the newest by default.
        **fields: other values for fields of `NesT`; with another image_size, num_channels or
            num_classes the weights are adapted as for fine-tuning.
    Raises:
        BadInput: if `where` names no weights, or they are corrupt or do not fit.

    Example:
        >>> import nest_dist
        >>> nest_dist.load("nest_micro", num_classes=10)
        nest_dist.Pretrained
          model    nest_micro, 148,394 parameters: levels of 2, 2 layers, width 32, heads 2
          classes  10, without names
          image    32 x 32 pixels, grey
          from     nest_micro
                   initial values, not trained
    """
    run: run_json.Json = None
    class_names: tuple[str, ...] = ()
    sets = False
    if stored_weights.is_variant(where):
        model = variants.with_fields(variants.models()[str(where)], fields)
        params = initial_values(model, native.shapes_of(model))
        notes = ["initial values, not trained"]
    else:
        hints = {name: fields[name] for name in stored_weights.HINTS if name in fields}
        stored = stored_weights.find(where, step, hints)
        model = variants.with_fields(stored.model, fields)
        params, lines = adapt(stored, model)
        notes = [f"{stored.form} weights of {describe(stored.model)}", *lines]
        run = stored.run
        if model.num_classes == stored.model.num_classes:
            class_names, sets = stored.class_names, _has_sets(run)
    variables = {"params": tree_paths.unflatten(params)}
    preprocess = preprocessing.of_model(model, run)
    return Pretrained(model, variables, preprocess, class_names, tuple(notes), str(where), sets)


def adapt(
    stored: stored_weights.StoredWeights,
    model: nest.NesT,
    seed: int = 0,
    class_names: Sequence[str] = (),
    new_head: typing.Literal["random", "zeros"] = "random",
    head_bias: float = 0.0,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters for `model` from stored weights, and lines on how they were adapted.

    Args:
        stored: weights of the same architecture.
        seed: of a head for other classes.
        class_names: of the data to train on; empty for those of the weights.
        new_head: how a head for other classes begins.
        head_bias: initial bias of a head for other classes.
    """
    params, note = transfer.with_classes(stored.params, stored.class_names, class_names)
    if class_names and not stored.class_names and stored.model.num_classes == model.num_classes:
        note = ("the weights do not name their classes: the head is loaded as it is",)
    head = initial_values(model, transfer.HEAD, seed)
    if new_head == "zeros":
        head = {name: np.zeros_like(leaf) for name, leaf in head.items()}
    head = {name: leaf + head_bias * name.endswith("bias") for name, leaf in head.items()}
    adapted, lines = transfer.transfer(stored.model, params, model, head)
    return adapted, [*lines, *note]


def initial_values(
    model: nest.NesT, names: Collection[str], seed: int = 0
) -> dict[str, np.ndarray]:
    """The values that the model's own initialization gives to those of its parameters."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = native.init(model, key)
        return {name: params[name] for name in names if name in params}  # computes no others

    return jax.device_get(jax.jit(init)(jax.random.key(seed)))


def _has_sets(run: run_json.Json) -> bool:
    """Whether the pictures of a run had sets of classes; weights without a run tell nothing."""
    learnt = run and run_json.select(run, "step", "objective")
    of_sets = multi_label.MultiLabel
    return run_json.is_object(learnt) and learnt["class"] == run_json.class_name(of_sets)


def describe(model: nest.NesT) -> str:
    """The published name of a model, if it has one, and its numbers."""
    name = recognition.name_of(model, variants.models())
    described = f"{f'{name}, ' if name else ''}{weights.describe(model)}"
    return f"{described}, {_num_parameters(model):,} parameters"


def _num_parameters(model: nest.NesT) -> int:
    return int(sum(map(np.prod, native.shapes_of(model).values())))
