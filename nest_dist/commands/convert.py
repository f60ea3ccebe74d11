"""`nest-dist convert`: weights from one format to another, without loss."""

import os
import pathlib
import typing
from collections.abc import Iterator, Mapping, Sequence

from nest_dist.base import checks, failures
from nest_dist.commands import cli
from nest_dist.config import strict_gin
from nest_dist.model import nest
from nest_dist.pretrained import (
    averages,
    description,
    load,
    recognition,
    variants,
    weight_files,
    weights,
)
from nest_dist.pretrained import stored as stored_weights
from nest_dist.pretrained.formats import flax_file, safetensors_file

_IN_TIMM = ("nest_tiny", "nest_small", "nest_base")


def run(options: cli.Options) -> None:
    """Reads files, workdirs or Hub repositories, and writes one file."""
    given = len(options.arguments)
    if given < 3 if options.average else given != 2:
        needed = "at least three, IN IN OUT" if options.average else "two, IN and OUT"
        raise failures.BadInput(f"convert got {given} paths; give {needed}.")
    *sources, out = options.arguments
    real = [os.path.realpath(where) for where in sources]
    if twice := [where for where, it in zip(sources, real, strict=True) if real.count(it) > 1]:
        raise failures.BadInput(f"--average got {twice[0]} twice; give each path once.")
    wanted = getattr(options, "from")
    for flag, value in (("--from", wanted), ("--to", options.to)):
        if value is None:
            raise failures.BadInput(f"{flag} is not given; give {' or '.join(weights.FORMATS)}.")
        checks.one_of(flag, value, weights.FORMATS)
    path = _checked_out(out, options.to)
    hints = _hints(options.gin_bindings or ())
    by_path = {where: stored_weights.find(where, options.step, hints) for where in sources}
    for where, stored in by_path.items():
        if stored.form != wanted:
            raise failures.BadInput(
                f"--from is {wanted}, but {where} holds {stored.form} weights; set "
                f"--from={stored.form}."
            )
        print(f"{where}: {stored.form} weights of {load.describe(stored.model)}")
    stored = averages.mean(by_path) if options.average else by_path[sources[0]]
    arrays = weights.to_format(options.to, stored.params, stored.model)
    weight_files.write(path, lambda partial: _fill(partial, arrays, options.to, stored))
    if stored.left_out:
        print(f"left out: {', '.join(stored.left_out)}")
    types = " and ".join(sorted({leaf.dtype.name for leaf in arrays.values()}))
    print(f"{out}: {len(arrays)} {types} arrays in the {options.to} format")
    for remark in _remarks(stored.model, options.to, out):
        print(remark)


def _fill(
    path: pathlib.Path,
    arrays: weights.Arrays,
    form: weights.Format,
    stored: stored_weights.StoredWeights,
) -> None:
    if form == "official":
        flax_file.write(path, arrays)
    elif form == "timm":
        safetensors_file.write(path, arrays, _timm_metadata(stored.model))
    else:
        metadata = description.texts(stored.model, stored.run, stored.class_names)
        safetensors_file.write(path, arrays, metadata)


def _remarks(model: nest.NesT, form: weights.Format, out: str) -> Iterator[str]:
    """What the user of the file should know."""
    if form == "timm":
        yield f"to load it: {_timm_constructor(model, out)}"
    if form != "nest_dist" and model.gelu != weights.FORMATS[form].GELU:
        yield (
            f"note: this model has the {model.gelu} GELU, {form}'s have the "
            f"{weights.FORMATS[form].GELU} one; there its logits differ slightly"
        )


def _timm_name(model: nest.NesT) -> str | None:
    """What timm calls this model; those with official weights pad as the official code does."""
    name = recognition.name_of(model, variants.models())
    return f"{name}_jx" if name in _IN_TIMM else None


def _timm_constructor(model: nest.NesT, out: str) -> str:
    """The line of Python by which timm makes the model with the weights of `out`."""
    fields: dict[str, object] = {
        "img_size": model.geometry().image_sides[0],
        "num_classes": model.num_classes,
    }
    if name := _timm_name(model):
        return f"timm.create_model({name!r}, {_arguments(fields)}, checkpoint_path={out!r})"
    widths = model.widths()
    fields |= {
        "in_chans": model.num_channels,
        "patch_size": model.patch_size,
        "num_levels": model.num_hierarchies,
        "embed_dims": widths,
        "num_heads": tuple(model.heads * width // model.dim for width in widths),
        "depths": model.block_repeats,
        "mlp_ratio": model.mlp_ratio,
        "pad_type": "same",
    }
    constructor = f"timm.models.nest.Nest({_arguments(fields)})"
    return f"model = {constructor}; timm.models.load_checkpoint(model, {out!r})"


def _arguments(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def _timm_metadata(model: nest.NesT) -> dict[str, str]:
    """Metadata: the arrays are in PyTorch's order, and the model by its name in timm."""
    name = _timm_name(model)
    return {
        "format": "pt",
        **({"architecture": name} if name else {}),
        "num_classes": str(model.num_classes),
        "img_size": str(model.geometry().image_sides[0]),
    }


def _checked_out(out: str, form: weights.Format) -> pathlib.Path:
    """OUT, whose ending tells other programs its format."""
    path = pathlib.Path(out).expanduser()
    ending = ".flax" if form == "official" else ".safetensors"
    if path.suffix != ending:
        raise failures.BadInput(
            f"OUT is {out}; for --to={form} it must end in {ending}, by which other programs "
            "know the format."
        )
    weight_files.require_new(path)
    return path


def _hints(bindings: Sequence[str]) -> dict[str, typing.Any]:
    """Fields of NesT that the weights do not tell, as in NesT.heads = 3."""
    values = strict_gin.values("NesT", bindings)
    for value in values.values():
        if not isinstance(value, int | float | str | tuple | list):  # a macro or a reference
            raise failures.BadInput(
                f"--gin_bindings is {bindings[-1]!r}, which gives no value; write NesT.heads = 3."
            )
    for name in values.keys() - set(stored_weights.HINTS):
        raise failures.BadInput(
            f"--gin_bindings has NesT.{name}, which weights tell themselves; convert takes only "
            f"{' and '.join(f'NesT.{hint}' for hint in stored_weights.HINTS)}."
        )
    return values
