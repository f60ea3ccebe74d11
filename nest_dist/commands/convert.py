"""`nest-dist convert`: weights from one format to another, without loss."""

import pathlib
import typing
from collections.abc import Iterator

from nest_dist.base import checks, failures
from nest_dist.checkpointing import flax_file, safetensors_file, weight_files
from nest_dist.commands import cli, description, pretrained, recorded, variants
from nest_dist.model import nest, recognition, weights

_IN_TIMM = ("nest_tiny", "nest_small", "nest_base")


def run(options: cli.Options) -> None:
    """Reads one file, workdir or Hub repository, and writes one file."""
    if len(options.arguments) != 2:
        raise failures.BadInput(
            f"convert got {len(options.arguments)} paths; give two, IN and OUT."
        )
    where, out = options.arguments
    wanted = getattr(options, "from")
    for flag, value in (("--from", wanted), ("--to", options.to)):
        if value is None:
            raise failures.BadInput(f"{flag} is not given; give {' or '.join(weights.FORMATS)}.")
        checks.one_of(flag, value, weights.FORMATS)
    path = _checked_out(out, options.to)
    found = pretrained.find(where, options.step, _hints(options.gin_bindings or ()))
    if found.form != wanted:
        raise failures.BadInput(
            f"--from is {wanted}, but {where} holds {found.form} weights; set --from={found.form}."
        )
    arrays = weights.from_ours(options.to, found.params, found.model)
    weight_files.write(path, lambda partial: _fill(partial, arrays, options.to, found))
    print(f"{where}: {found.form} weights of {pretrained.describe(found.model)}")
    if found.left_out:
        print(f"left out: {', '.join(found.left_out)}")
    types = " and ".join(sorted({leaf.dtype.name for leaf in arrays.values()}))
    print(f"{out}: {len(arrays)} {types} arrays in the {options.to} format")
    for remark in _remarks(found.model, options.to, out):
        print(remark)


def _fill(
    path: pathlib.Path, arrays: weights.Arrays, form: weights.Format, found: pretrained.Found
) -> None:
    if form == "official":
        flax_file.write(path, arrays)
    elif form == "timm":
        safetensors_file.write(path, arrays, _timm_metadata(found.model))
    else:
        known = description.Description(found.model, found.configuration, found.class_names)
        safetensors_file.write(path, arrays, known.texts())


def _remarks(model: nest.NesT, form: weights.Format, out: str) -> Iterator[str]:
    """What the user of the file should know."""
    name = _timm_name(model)
    if form == "timm" and name:
        fields = f"img_size={model.geometry().image_sides[0]}, num_classes={model.num_classes}"
        yield f"to load it: timm.create_model({name!r}, {fields}, checkpoint_path={out!r})"
    if form != "nest_dist" and model.gelu != weights.GELU[form]:
        yield (
            f"note: this model has the {model.gelu} GELU, {form}'s have the {weights.GELU[form]} "
            "one; there its logits differ slightly"
        )


def _timm_name(model: nest.NesT) -> str | None:
    """What timm calls this model; those with official weights pad as the official code does."""
    name = recognition.name_of(model, variants.models())
    return f"{name}_jx" if name in _IN_TIMM else None


def _timm_metadata(model: nest.NesT) -> dict[str, str]:
    """What tells PyTorch's readers that the arrays are theirs, and people which model it is."""
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


def _hints(bindings: typing.Sequence[str]) -> dict[str, typing.Any]:
    """Fields of NesT that the weights do not tell, as in NesT.heads = 3."""
    try:
        text = recorded.Recorded("\n".join(bindings))
        values = {name: text.value("NesT", name) for name in pretrained.HINTS}
    except failures.BadInput:
        raise failures.BadInput(
            f"--gin_bindings is {bindings[-1]!r}, which gives no value; write NesT.heads = 3."
        ) from None
    for name in text.plain().keys() - {f"NesT.{hint}" for hint in pretrained.HINTS}:
        raise failures.BadInput(
            f"--gin_bindings has {name}, which weights tell themselves; convert takes only "
            f"{' and '.join(f'NesT.{hint}' for hint in pretrained.HINTS)}."
        )
    return {name: value for name, value in values.items() if value is not None}
