"""`nest-dist convert`: weights from one format to another, without loss."""

import pathlib
import typing

from nest_dist.base import checks, failures
from nest_dist.checkpointing import flax_file, safetensors_file, weight_files
from nest_dist.commands import cli, pretrained, recorded, variants
from nest_dist.model import recognition, weights


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
    print(f"{out}: {len(arrays)} arrays in the {options.to} format")


def _fill(
    path: pathlib.Path, arrays: weights.Arrays, form: weights.Format, found: pretrained.Found
) -> None:
    if form == "official":
        flax_file.write(path, arrays)
    elif form == "nest_dist":
        safetensors_file.write(path, arrays, pretrained.metadata_of(found))
    else:
        safetensors_file.write(path, arrays, _timm_metadata(found))


def _timm_metadata(found: pretrained.Found) -> dict[str, str]:
    """What tells PyTorch's readers that the arrays are theirs, and people which model it is."""
    model = found.model
    name = recognition.name_of(model, variants.models())
    # timm's models for the official weights pad as the official code does.
    architecture = {"architecture": f"{name}_jx"} if name and name.startswith("nest_") else {}
    return {
        "format": "pt",
        **architecture,
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
    if path.exists():
        raise failures.BadInput(f"{path} is there already; remove it, or choose another name.")
    return path


def _hints(bindings: typing.Sequence[str]) -> dict[str, typing.Any]:
    """Fields of NesT that the weights do not tell, as in NesT.heads = 3."""
    text = recorded.Recorded("\n".join(bindings))
    values = {name: text.value("NesT", name) for name in pretrained.HINTS}
    return {name: value for name, value in values.items() if value is not None}
