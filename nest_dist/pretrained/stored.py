"""Weights as they are stored: where they are, what they hold, and whom they belong to."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from nest_dist.base import checks, failures, hub, tree_paths
from nest_dist.checkpointing import reader
from nest_dist.config import run_json, workdir
from nest_dist.model import nest
from nest_dist.pretrained import (
    description,
    recognition,
    variants,
    weight_files,
    weights,
)
from nest_dist.train.objectives import pretext

MOST_LAYERS = 200  # a NesT-B has 24
# The fields of `NesT` that the shapes of foreign weights do not tell.
HINTS = ("heads", "block_repeats")
SUFFIXES = (".safetensors", ".flax", ".pth")


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """Weights as they are stored, and the model they belong to."""

    model: nest.NesT  # with the image and the classes of the weights
    params: dict[str, np.ndarray]  # by their names in `model`, flat
    form: weights.Format
    run: run_json.Json | None = None  # that trained them, as JSON, if it is known
    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # entries of the file that are no weights


def find(
    where: str | pathlib.Path,
    step: int | None = None,
    hints: Mapping[str, object] | None = None,
) -> StoredWeights:
    """The weights of a file, a workdir or a repository on the Hub.

    Args:
        where: see `load.load`; the name of a variant is refused.
        step: which checkpoint of a workdir; the newest by default.
        hints: fields of `NesT` that the weights may not tell.
    Raises:
        BadInput: if `where` names no weights, or they are corrupt or belong to no NesT.
    """
    name = str(where)
    try:
        if name.startswith(hub.WEIGHTS):
            path = hub.download(name)
        else:
            path = pathlib.Path(where).expanduser().absolute()
        if path.is_dir():
            return _in_folder(path, step, hints or {})
        if not path.exists():
            raise _absent(name)
        if not path.is_file():  # a pipe would keep us waiting
            raise failures.BadInput(
                f"{where} is neither a file nor a folder; give a file of weights or a workdir."
            )
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


def require_trained(where: str | pathlib.Path | None) -> None:
    """Refuses the bare name of a variant."""
    if where is None:
        raise failures.BadInput(
            "--checkpoint is not given; give a file of weights, a workdir, or a repository of the "
            "Hugging Face Hub."
        )
    if is_variant(where):
        raise failures.BadInput(
            f"{where} is the name of a variant, which has no trained weights; give a file, a "
            "workdir, or a repository of the Hugging Face Hub such as "
            "hf:timm/nest_tiny_jx.goog_in1k."
        )


def is_variant(where: str | pathlib.Path) -> bool:
    """Whether this is the name of a variant, and no path."""
    return str(where) in variants.models() and not pathlib.Path(where).exists()


def _absent(where: str) -> failures.BadInput:
    """Nothing is fetched whose name does not say so: anyone may own such a repository."""
    require_trained(where)
    path = pathlib.Path(where).expanduser().absolute()
    if hub.looks_like_id(where) and not path.parent.is_dir():
        hint = f"for a repository of the Hugging Face Hub write {hub.WEIGHTS}{where}."
        return failures.BadInput(f"{where} is no file, no folder and no variant of NesT; {hint}")
    if "/" not in where and path.suffix not in SUFFIXES:
        known = checks.suggestion(where, variants.models())
        return failures.BadInput(f"{where} is no file, no folder and no variant of NesT; {known}")
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = " or ".join(difflib.get_close_matches(path.name, beside))
    return failures.BadInput(
        f"{where} is not there: no file or folder {path}; "
        f"{f'did you mean {near}? Else ' if near else ''}give a file of weights, a workdir, or "
        f"{hub.WEIGHTS}OWNER/NAME for a repository of the Hugging Face Hub."
    )


def _in_folder(path: pathlib.Path, step: int | None, hints: Mapping[str, object]) -> StoredWeights:
    """Weights of a workdir, its folder of checkpoints, a checkpoint, or a folder with one file."""
    if path.name.isascii() and path.name.isdigit() and path.parent.name == workdir.CHECKPOINTS:
        return _in_checkpoints(path.parent, int(path.name))
    for folder in (path, path / workdir.CHECKPOINTS):
        if folder.name == workdir.CHECKPOINTS and folder.is_dir():
            return _in_checkpoints(folder, step)
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES]
    if len(files) != 1:
        raise failures.BadInput(
            f"{path} is a folder with {len(files)} files of weights and no checkpoints of a run; "
            "give one file, or a workdir."
        )
    return _in_file(files[0], hints)


def _in_file(path: pathlib.Path, hints: Mapping[str, object]) -> StoredWeights:
    file = weight_files.read(path)
    form = weights.format_of(file.arrays)
    model, run, class_names = description.read(path, file.metadata)
    if model is None:
        shapes = {name: leaf.shape for name, leaf in file.arrays.items()}
        model = recognition.recognise(shapes, variants.models(), hints)
    if (layers := sum(model.block_repeats)) > min(MOST_LAYERS, len(file.arrays)):
        raise failures.BadInput(
            f"{path} is of a NesT of {layers} layers, and has {len(file.arrays)} arrays; give "
            f"weights of at most {MOST_LAYERS} layers, complete."
        )
    return StoredWeights(
        model=model,
        params=weights.from_format(form, file.arrays, model),
        form=form,
        run=run,
        class_names=class_names,
        left_out=file.left_out,
    )


def _in_checkpoints(path: pathlib.Path, step: int | None) -> StoredWeights:
    checkpoints = reader.Reader(path)
    _, (arrays, metadata) = checkpoints.read(
        step, lambda chosen: (checkpoints.arrays(chosen), checkpoints.metadata(chosen))
    )
    tree = tree_paths.unflatten(arrays)
    averaged = tree.get("ema")
    weights_of = "ema" if averaged else "params"
    of_model = dict(averaged or tree["params"])
    own = of_model.pop(pretext.PARAMETERS, None)
    params = tree_paths.flatten(of_model)
    run = metadata["run"]
    model = description.configured(run, "model")
    model = model.clone(kernels="auto")  # a run may have had other devices
    return StoredWeights(
        model=model,
        params=weights.from_format("nest_dist", params, model),
        form="nest_dist",
        run=run,
        class_names=tuple(metadata.get("class_names", ())) if model.num_classes else (),
        left_out=(
            *(name for name in tree if name != weights_of),
            *([f"{weights_of}/{pretext.PARAMETERS}"] if own else []),
        ),
    )
