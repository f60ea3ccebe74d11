"""What can be prepared: folders, tar archives, Parquet, TFDS and IDX, each opened as a source."""

import dataclasses
import pathlib
import posixpath
import typing
from collections.abc import Callable, Sequence

from nest_dist.base import checks, failures
from nest_dist.data import batch
from nest_dist.data.preparing import labels, parquet, pictures, tars
from nest_dist.data.sources import idx, image_folder

LISTED = 3  # names given as examples in the text of errors


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read what there is.

    Attributes:
        split: which one to take where there are several.
        labels: file with the class of each picture, for pictures without class folders.
        image_column: feature or column with the picture.
        label_column: feature or column with the class.
    """

    split: str
    labels: str | None
    image_column: str
    label_column: str


@dataclasses.dataclass(frozen=True)
class Input:
    """What was found.

    Attributes:
        source: the pictures.
        bytes: size of all of it, roughly.
        remarks: what else is there and is left out.
        root: prefix of keys that says where the input lies on this machine.
    """

    source: batch.Source
    bytes: int
    remarks: Sequence[pictures.Remark] = ()
    root: str = ""


def recognised(paths: Sequence[pathlib.Path]) -> str:
    """The format of what lies at some paths.

    Raises:
        BadInput: if nothing does.
    """
    path = paths[0]
    for each in paths:
        if not each.exists():
            raise failures.BadInput(
                f"{each} does not exist; give a folder, a tar archive or Parquet files."
            )
    if not path.is_dir():
        return "parquet" if path.suffix == ".parquet" else "tar"
    if (path / "dataset_info.json").is_file():
        return "tfds"
    if any(path.glob("*-images-idx3-ubyte*")):
        return "idx"
    # Not deeper: a folder of class folders may hold millions of files.
    return "parquet" if any((*path.glob("*.parquet"), *path.glob("data/*.parquet"))) else "folder"


def opened(form: str, paths: Sequence[pathlib.Path], options: Options) -> Input:
    """The pictures at some paths.

    Args:
        form: one of `FORMATS`.
        paths: one, or several Parquet files.
        options: how to read them.
    Raises:
        BadInput: if they are not what they should be.
    """
    if len(paths) > 1 and form != "parquet":
        raise failures.BadInput(
            f"there are {len(paths)} INPUTs of format {form}; only Parquet can be several files."
        )
    if options.labels and form not in ("folder", "tar"):
        raise failures.BadInput(
            f"--labels is {options.labels}, but {form} has labels of its own; leave it out."
        )
    return FORMATS[form](paths, options)


def _folder(paths: Sequence[pathlib.Path], options: Options) -> Input:
    (root,) = paths
    if options.labels:
        names = sorted(
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.suffix.lower() in image_folder.SUFFIXES and path.is_file()
        )
        classes = labels.by_file(_some(names, root), options.labels)
        class_names = sorted(set(classes))
        label_of = {name: label for label, name in enumerate(class_names)}
        entries = tuple(
            (name, label_of[each], (root / name).stat().st_size)
            for name, each in zip(names, classes, strict=True)
        )
        source = image_folder.Files(str(root), tuple(class_names), entries)
    else:
        source = image_folder.ImageFolder(str(root), "").open()
    return Input(source, sum(size for *_, size in source.entries), root=f"{root}/")


def _tar(paths: Sequence[pathlib.Path], options: Options) -> Input:
    (path,) = paths
    found, remarks = tars.listed(path)
    names = [member.name for member in _some(found, path)]
    if options.labels:
        classes = labels.by_file(names, options.labels)
    else:
        classes = labels.by_folder(names)
        if not any(classes):
            raise failures.BadInput(
                f"{path} has no folders, so nothing says which class {names[0]} and the others "
                "have; give --labels=FILE with a line NAME CLASS for each."
            )
        inside = _folder_of_classes(path, [each for each in names if "/" in each], options.split)
        for number, name in enumerate(names):
            if posixpath.dirname(posixpath.dirname(name)) != inside or "/" not in name:
                classes[number] = ""
                remarks.append(pictures.Remark(name, "left out", "it lies in no class folder"))
    class_names = sorted(set(classes) - {""})
    label_of = {name: label for label, name in enumerate(class_names)}
    entries = tuple(
        (member, label_of[each]) for member, each in zip(found, classes, strict=True) if each
    )
    return Input(
        tars.Members(str(path), tuple(class_names), entries),
        sum(member.size for member, _ in entries),
        remarks,
    )


def _folder_of_classes(path: pathlib.Path, names: Sequence[str], split: str) -> str:
    """The folder in an archive whose folders are the classes."""
    found = sorted({posixpath.dirname(posixpath.dirname(name)) for name in names})
    fitting = [name for name in found if posixpath.basename(name) == split]
    if len(found) == 1 or len(fitting) == 1:
        return (fitting or found)[0]
    raise failures.BadInput(
        f"{path} has class folders in {len(found)} places ({_few(found)}), and none of them alone "
        f"is called {split!r} as --split; give an archive of one split."
    )


def _parquet(paths: Sequence[pathlib.Path], options: Options) -> Input:
    if paths[0].is_dir():
        (root,) = paths
        found = sorted(root.rglob("*.parquet"))
        paths = [
            path
            for path in found
            if options.split in path.relative_to(root).parts[:-1]
            or path.stem == options.split
            or path.name.startswith(f"{options.split}-")
        ]
        if not paths:
            raise failures.BadInput(
                f"{root} has no Parquet files of split {options.split!r}, by their names: it has "
                f"{_few([path.name for path in found])}; give the files themselves."
            )
    source = parquet.opened(paths, options.image_column, options.label_column)
    return Input(source, sum(path.stat().st_size for path in paths))


def _tfds(paths: Sequence[pathlib.Path], options: Options) -> Input:
    # It loads Grain and JAX, which takes seconds; other inputs do without.
    from nest_dist.data.sources import tfds

    (root,) = paths
    columns = options.image_column, options.label_column
    source = tfds.Tfds(str(root), options.split, *columns).open()
    written = root.glob(f"*-{options.split}.array_record-*")
    return Input(source, sum(path.stat().st_size for path in written))


def _idx(paths: Sequence[pathlib.Path], options: Options) -> Input:
    (root,) = paths
    checks.one_of("--split", options.split, idx.FILE_PREFIX, " IDX files have these splits.")
    numbers = tuple(str(number) for number in range(256))
    source = idx.Idx(str(root), typing.cast(typing.Any, options.split), numbers).open()
    names = numbers[: int(source.labels.max(initial=0)) + 1]
    return Input(dataclasses.replace(source, class_names=names), source.images.nbytes)


FORMATS: dict[str, Callable[[Sequence[pathlib.Path], Options], Input]] = {
    "folder": _folder,
    "tar": _tar,
    "parquet": _parquet,
    "tfds": _tfds,
    "idx": _idx,
}


def _some(found: typing.Any, path: pathlib.Path) -> typing.Any:
    """What was found, which must be something."""
    if not found:
        raise failures.BadInput(
            f"{path} holds no pictures ({', '.join(sorted(image_folder.SUFFIXES))}); give an INPUT "
            "that does."
        )
    return found


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(name or "the top" for name in names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
