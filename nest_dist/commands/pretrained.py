"""Models with their weights, from any file or folder that holds some."""

import dataclasses
import functools
import os
import pathlib
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import checks, failures, names
from nest_dist.checkpointing import manager, weight_files
from nest_dist.commands import description, hub, preprocessing, recorded, variants, workdirs
from nest_dist.model import nest, recognition, transfer, weights

# What of a model does not show in the shapes of foreign weights.
HINTS = ("heads", "block_repeats")


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights as they are stored, and the model they belong to.

    Attributes:
        model: with the image and the classes of the weights.
        params: under our names, flat.
        form: the format they are stored in.
        configuration: the text of the run that trained them, if it is known.
        class_names: if they are known.
        left_out: parts of the file that are no weights.
    """

    model: nest.NesT
    params: dict[str, np.ndarray]
    form: weights.Format
    configuration: str | None = None
    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model ready for use: `loaded.logits(loaded.preprocess("cat.jpg"))`.

    Attributes:
        model: the Linen module.
        variables: what its `apply` takes.
        preprocess: pictures -> float32 [B, H, W, C].
        class_names: the name of each logit; empty if they are not known.
        notes: where the weights come from, and what became of them, line by line.
    """

    model: nest.NesT
    variables: dict[str, typing.Any]
    preprocess: preprocessing.Preprocessing
    class_names: tuple[str, ...]
    notes: tuple[str, ...]

    def logits(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Float32 [B, classes] of what `preprocess` gives."""
        return self._apply(self.variables, images)

    @functools.cached_property
    def _apply(self) -> typing.Callable[..., jax.Array]:
        return jax.jit(self.model.apply)


def load(where: str | pathlib.Path, step: int | None = None, **fields: typing.Any) -> Pretrained:
    """A model with weights and preprocessing.

    Args:
        where: a file of weights (safetensors, PyTorch, flax msgpack; nest_dist's, timm's or the
            official names), the workdir of a run, the id of a repository on the Hugging Face Hub
            such as "timm/nest_tiny_jx.goog_in1k", or the name of a variant such as "nest_tiny",
            which comes with first values instead of trained weights.
        step: which checkpoint of a workdir; the newest by default.
        **fields: other values for fields of `NesT`; with another image_size or num_classes the
            weights are adapted as for fine-tuning.
    Raises:
        BadInput: if there are no such weights, they are damaged, or do not fit.
    """
    if str(where) in variants.models() and not pathlib.Path(where).exists():
        model = variants.with_fields(variants.models()[str(where)], fields)
        params = dict(first_values(model, weights.shapes_of(model)))
        return _ready(model, params, None, (), ("first values, not trained",))
    found = find(where, step, {name: fields[name] for name in HINTS if name in fields})
    model = variants.with_fields(found.model, fields)
    params, report = adapt(found, model)
    notes = (f"{found.form} weights of {describe(found.model)}", *report.lines())
    if model.num_classes != found.model.num_classes:
        found = dataclasses.replace(found, class_names=())
    return _ready(model, params, found.configuration, found.class_names, notes)


def find(
    where: str | pathlib.Path,
    step: int | None = None,
    hints: Mapping[str, typing.Any] | None = None,
) -> Found:
    """The weights of a file, a workdir or a repository on the Hub.

    Args:
        where: see `load`; a variant's name has none.
        step: which checkpoint of a workdir.
        hints: fields of `NesT` that the weights may not tell.
    Raises:
        BadInput: if there are none, they are damaged, or belong to no NesT.
    """
    path = pathlib.Path(where).expanduser().absolute()
    try:
        if path.is_dir():
            return _in_folder(path, step, hints or {})
        if not path.exists():
            path = _downloaded(str(where))
        if step is not None:
            raise failures.BadInput(
                f"--step is {step}, but {where} is a file of weights, which has no steps; leave it "
                "out, or give a workdir."
            )
        return _in_file(path, hints or {})
    except OSError as error:
        raise failures.BadInput(
            f"{where} cannot be read ({error.strerror}); give a file or folder that the user "
            f"{os.getuid()} may read."
        ) from None


def require_trained(where: str | pathlib.Path) -> None:
    """Refuses the bare name of a variant.

    Raises:
        BadInput: if `where` is such a name and no path.
    """
    if str(where) in variants.models() and not pathlib.Path(where).exists():
        raise failures.BadInput(
            f"{where} is the name of a variant, which has no trained weights; give a file, a "
            "workdir, or a repository of the Hugging Face Hub such as "
            "timm/nest_tiny_jx.goog_in1k."
        )


def adapt(
    found: Found, model: nest.NesT, seed: int = 0
) -> tuple[dict[str, np.ndarray], transfer.Report]:
    """Parameters for `model`, those that `found` does not have being initialised.

    Args:
        found: what there is.
        model: what it shall serve.
        seed: of first values.
    Raises:
        BadInput: if the models differ in more than image, blocks and classes.
    """
    wanted = weights.shapes_of(model)
    heads = {name: wanted[name] for name in transfer.HEAD if name in wanted}
    return transfer.transfer(found.model, found.params, model, first_values(model, heads, seed))


def first_values(model: nest.NesT, wanted: weights.Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """What the model's own initialisation gives to some of its parameters."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        H, W = model.geometry().image_sides
        images = jnp.zeros((1, H, W, model.num_channels))
        params = names.flatten(model.init({"params": key}, images)["params"])
        return {name: params[name] for name in wanted}  # the others are never computed

    if not wanted:
        return {}
    return {name: np.asarray(leaf) for name, leaf in jax.jit(init)(jax.random.key(seed)).items()}


def describe(model: nest.NesT) -> str:
    """The published name of a model, if it has one, and its numbers."""
    name = recognition.name_of(model, variants.models())
    count = sum(map(np.prod, weights.shapes_of(model).values()))
    return f"{f'{name}, ' if name else ''}{weights.describe(model)}, {count:,} parameters"


def _ready(
    model: nest.NesT,
    params: dict[str, np.ndarray],
    configuration: str | None,
    class_names: tuple[str, ...],
    notes: tuple[str, ...],
) -> Pretrained:
    return Pretrained(
        model=model,
        variables={"params": names.unflatten(params)},
        preprocess=preprocessing.of_model(model, configuration),
        class_names=class_names,
        notes=notes,
    )


def _downloaded(where: str) -> pathlib.Path:
    """The file that a name stands for which is no path."""
    require_trained(where)
    if not hub.looks_like_id(where):
        known = checks.suggestion(where, variants.models())
        raise failures.BadInput(f"{where} is no file, no folder and no variant of NesT; {known}")
    return hub.download(where)


def _in_folder(path: pathlib.Path, step: int | None, hints: Mapping[str, typing.Any]) -> Found:
    """A workdir, its folder of checkpoints, one of them, or a folder with one file of weights."""
    if path.name.isdigit() and path.parent.name == workdirs.CHECKPOINTS:
        return _in_checkpoints(path.parent, int(path.name))
    for candidate in (path, path / workdirs.CHECKPOINTS):
        if candidate.name == workdirs.CHECKPOINTS and candidate.is_dir():
            return _in_checkpoints(candidate, step)
    files = [
        file for pattern in ("*.safetensors", "*.flax", "*.pth") for file in path.glob(pattern)
    ]
    if len(files) != 1:
        raise failures.BadInput(
            f"{path} is a folder with {len(files)} files of weights and no checkpoints of a run; "
            "give one file, or a workdir."
        )
    return _in_file(files[0], hints)


def _in_file(path: pathlib.Path, hints: Mapping[str, typing.Any]) -> Found:
    file = weight_files.read(path)
    form = weights.format_of(file.arrays)
    known = description.read(path, file.metadata)
    model = known.model
    if model is None:
        shapes = {name: leaf.shape for name, leaf in file.arrays.items()}
        model = recognition.recognise(shapes, variants.models(), hints)
    return Found(
        model=model,
        params=weights.to_ours(form, file.arrays, model),
        form=form,
        configuration=known.configuration,
        class_names=known.class_names,
        left_out=file.left_out,
    )


def _in_checkpoints(path: pathlib.Path, step: int | None) -> Found:
    checkpoints = manager.Manager(path, keep=None)
    try:
        chosen = _chosen(step, checkpoints.steps(), path)
        checkpoints.require_whole(chosen)
        arrays, metadata = checkpoints.arrays(chosen), checkpoints.metadata(chosen)
    finally:
        checkpoints.close()
    prefix = "ema/" if any(name.startswith("ema/") for name in arrays) else "params/"
    params = {
        name.removeprefix(prefix): leaf for name, leaf in arrays.items() if name.startswith(prefix)
    }
    configuration = metadata["configuration"]
    model = recorded.Recorded(configuration).build("NesT")
    return Found(
        model=model,
        params=weights.to_ours("nest_dist", params, model),
        form="nest_dist",
        configuration=configuration,
        class_names=tuple(metadata.get("class_names", ())),
        left_out=("step", "optimizer", *(("params",) if prefix == "ema/" else ())),
    )


def _chosen(step: int | None, steps: list[int], path: pathlib.Path) -> int:
    if not steps:
        raise failures.BadInput(f"{path} has no checkpoint yet; train first.")
    if step is not None and step not in steps:
        raise failures.BadInput(
            f"there is no checkpoint of step {step} in {path}; there are "
            f"{', '.join(map(str, steps))}."
        )
    return steps[-1] if step is None else step
