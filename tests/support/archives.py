"""Archives and Parquet files with a few pictures, in the forms of published data sets."""

import io
import json
import pathlib
import tarfile
from collections.abc import Iterable

import pyarrow
import pyarrow.parquet


def header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0):
    """A member that is no ordinary file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


def tar_bytes(members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    """An archive with exactly these names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = header(name) if isinstance(name, str) else name
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def tar_of_tars(pictures: Iterable[tuple[str, int, bytes]]) -> bytes:
    """CLASS.tar for each class, as ImageNet's training pictures come."""
    classes: dict[str, list[tuple[str | tarfile.TarInfo, bytes]]] = {}
    for name, _, picture in pictures:
        folder, _, file = name.partition("/")
        classes.setdefault(folder, []).append((file, picture))
    return tar_bytes((f"{name}.tar", tar_bytes(inner)) for name, inner in classes.items())


def parquet(
    path: pathlib.Path,
    images: list[object],
    labels: list[object],
    names: Iterable[str] = (),
    columns: tuple[str, str] = ("image", "label"),
    group_rows: int = 5,
) -> pathlib.Path:
    """A file as the Hugging Face library writes it, with the names of classes, if any."""
    table = pyarrow.table(dict(zip(columns, (images, labels), strict=True)))
    if names:
        features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group_rows)
    return path
