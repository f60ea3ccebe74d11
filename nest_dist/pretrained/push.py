"""The files of a repository for a trained model: weights, run, curves, model card."""

import json
import os
import pathlib
import re

from nest_dist.base import failures, hub, scratch
from nest_dist.checkpointing import catalog, reader
from nest_dist.config import run_json
from nest_dist.config import workdir as workdirs
from nest_dist.pretrained import card, description, weights
from nest_dist.pretrained import stored as stored_weights
from nest_dist.pretrained.formats import safetensors_file
from nest_dist.telemetry import curves, pictures, records, report, staging

_SOURCES = "nest_dist.data.sources."
_TRACKERS = "nest_dist.telemetry.trackers."
_PATHS = ("init_from", "teacher")  # fields that name weights
_WITHHELD = "(not published)"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def new_folder(output: str) -> pathlib.Path:
    """The folder that --output names: missing, or empty."""
    folder = pathlib.Path(output).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise failures.BadInput(f"--output is {folder}, which is not empty; give a new folder.")
    return folder


def write(
    folder: pathlib.Path, workdir: workdirs.Folder, step: int | None, name: str, license_id: str
) -> int:
    """Writes the files of a repository; the folder appears when it is complete.

    Args:
        name: OWNER/NAME.
        license_id: of the weights, as the Hub writes it.
    Returns:
        The step of the weights.
    """
    checkpoints = workdir / workdirs.CHECKPOINTS
    chosen, _ = reader.Reader(checkpoints).read(step, lambda chosen: chosen)
    stored = stored_weights.find(workdir, chosen)
    run = public(stored.run)
    split = card.split_of(run)
    lines = [it for it in records.lines(workdir / staging.METRICS) if it["step"] <= chosen]
    text = card.text(
        name=name,
        license_id=license_id,
        model=stored.model,
        run=run,
        class_names=stored.class_names,
        step=chosen,
        metrics=catalog.Catalog(checkpoints).evaluation(chosen) or {},
        curves=report.CURVES if lines else None,
    )
    arrays = weights.to_format("nest_dist", stored.params, stored.model)
    document = {**run, "class_names": stored.class_names}
    made = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch.remove_leftovers(folder)
        made = scratch.Scratch(folder)
        (partial := made.folder / "repository").mkdir()
        safetensors_file.write(
            partial / hub.FILES[0],
            arrays,
            description.texts(stored.model, run, stored.class_names),
        )
        (partial / run_json.NAME).write_text(json.dumps(document, indent=1) + "\n")
        if lines:
            drawn = pictures.encoded(curves.draw(lines, split), lossless=True)
            (partial / report.CURVES).write_bytes(drawn)
        (partial / "README.md").write_text(text, encoding="utf-8")
        partial.rename(folder)
    except OSError as error:
        raise failures.BadInput(
            f"{folder} cannot be written ({failures.cause(error)}); choose another folder."
        ) from None
    finally:
        if made is not None:
            made.remove()
    return chosen


def public(document: run_json.Json) -> run_json.Json:
    """The JSON of a run without what belongs to a machine or a user.

    A path or an address becomes its last part, an object of `telemetry.trackers` None. Texts in
    objects of other packages may be anything, such as a password: they are withheld.
    """
    return _public(document, "", "")


def _public(value: run_json.Json, owner: str, field: str) -> run_json.Json:
    """A value of a field of an object of the class `owner`."""
    if run_json.is_object(value):
        name = value["class"]
        if name.startswith(_TRACKERS):
            return None
        fields = {each: _public(inner, name, each) for each, inner in value["fields"].items()}
        return {"class": name, "fields": fields}
    if isinstance(value, list):
        return [_public(item, owner, field) for item in value]
    return _public_text(value, owner, field) if isinstance(value, str) else value


def _public_text(text: str, owner: str, field: str) -> str:
    if not owner.startswith("nest_dist."):
        return _WITHHELD
    if text.startswith(hub.WEIGHTS) and "?" not in text:
        return text
    is_path = owner.startswith(_SOURCES) or field in _PATHS or _is_of_this_machine(text)
    return _last_part(text) if is_path else text


def _is_of_this_machine(text: str) -> bool:
    absolute = text.startswith(("/", "~", ".")) or "\\" in text or _ADDRESS.match(text)
    return bool(absolute) or ("/" in text and os.path.exists(text))


def _last_part(text: str) -> str:
    if _ADDRESS.match(text):
        text = re.split(r"[?#]", text)[0]  # which may hold a signature
        if text.count("/") == 2:  # a host alone, perhaps with a password
            return _WITHHELD
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
