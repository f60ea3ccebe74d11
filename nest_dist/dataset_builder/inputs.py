"""The inputs of `prepare` as sources: folders, tar archives, Parquet, TFDS and IDX."""

import dataclasses
import hashlib
import pathlib
import posixpath
from collections.abc import Callable, Iterable, Sequence

from nest_dist.base import checks, failures
from nest_dist.data import batch, classes
from nest_dist.data.sources import idx, image_folder, tfds
from nest_dist.dataset_builder import labels, pictures, tars


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read an input."""

    split: str  # of several in the input
    labels: str | None  # file with the class of each picture, for pictures without class folders
    image_column: str  # or feature
    label_column: str
    label_separator: str | None = None  # between classes of a picture; None for one class each


@dataclasses.dataclass(frozen=True)
class Input:
    """An input, opened."""

    source: batch.Source
    bytes: int  # of the pictures, roughly
    stamp: str  # changes with the files, or with the times of their last changes
    remarks: Sequence[pictures.Remark] = ()  # on files that are left out
    root: str = ""  # prefix of the keys, the folder of the input on this machine
    numbered: bool = False  # whether its classes have numbers and no names


def recognised(paths: Sequence[pathlib.Path]) -> str:
    """The format of the files at some paths."""
    for path in paths:
        if not path.exists():
            raise failures.BadInput(
                f"{path} does not exist; give a folder, a tar archive or Parquet files."
            )
        if not (path.is_file() or path.is_dir()):  # a pipe cannot be read by offset
            raise failures.BadInput(
                f"{path} is neither a file nor a folder; give a folder, a tar archive or Parquet "
                "files."
            )
    path = paths[0]
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
        paths: one, or several Parquet files.
    Raises:
        BadInput: if they do not have this format, or do not fit the options.
    """
    if len(paths) > 1 and form != "parquet":
        raise failures.BadInput(
            f"there are {len(paths)} INPUTs of format {form}; only Parquet can be several files."
        )
    if options.labels and form not in ("folder", "tar"):
        raise failures.BadInput(
            f"--labels is {options.labels}, but {form} has labels of its own; leave it out."
        )
    if options.label_separator == "":
        raise failures.BadInput("--label_separator is empty; give a character such as |.")
    if options.label_separator and not options.labels:
        raise failures.BadInput(
            f"--label_separator is {options.label_separator!r}, but there is no file of labels; "
            "give --labels, or leave it out."
        )
    return FORMATS[form](paths, options)


def _folder(paths: Sequence[pathlib.Path], options: Options) -> Input:
    (root,) = paths
    listing = image_folder.listed(root)
    holder = _holder_of_classes(root, listing.pictures, options)
    if holder:
        return _folder([root / holder], options)
    chosen = _classes(listing.pictures, listing.folders, holder, options)
    return Input(
        image_folder.Files(str(root), chosen.names, chosen.entries),
        sum(picture.size for picture, _ in chosen.entries),
        _stamp((chosen.names, chosen.entries)),
        _remarks(listing.passed_over + chosen.passed_over),
        root=f"{root}/",
    )


def _tar(paths: Sequence[pathlib.Path], options: Options) -> Input:
    (path,) = paths
    members, passed_over = tars.listed(path)
    chosen = _classes(members, (), _holder_of_classes(path, members, options), options)
    stamp = _stamp((chosen.names, chosen.entries), [path])
    return Input(
        tars.Members(str(path), chosen.names, chosen.entries, stamp),
        sum(member.size for member, _ in chosen.entries),
        stamp,
        _remarks(passed_over + chosen.passed_over),
    )


def _classes(
    files: Sequence[image_folder.File], folders: Sequence[str], holder: str, options: Options
) -> image_folder.Classes[image_folder.File]:
    if not options.labels:
        return image_folder.by_folder(files, folders, holder)
    separator = options.label_separator
    named = labels.by_file([file.name for file in files], options.labels, separator is not None)
    found: Sequence[int | batch.ClassSet]
    if separator:
        names, found = labels.sets(named, separator)
    else:
        names = sorted(set(named))
        label_of = {name: label for label, name in enumerate(names)}
        found = [label_of[name] for name in named]
    if not names:
        raise failures.BadInput(
            f"--labels is {options.labels}, which gives no picture a class; add classes."
        )
    return image_folder.Classes(tuple(names), tuple(zip(files, found, strict=True)), [])


def _holder_of_classes(
    path: pathlib.Path, files: Sequence[image_folder.Named], options: Options
) -> str:
    """The folder in an input that holds the class folders; "" if it is the input itself."""
    holders, split = image_folder.holders_of_classes(files, path), options.split
    if options.labels:
        return ""
    if not holders:
        raise failures.BadInput(
            f"{path} has no folders, so nothing says which class {files[0].name} and the others "
            "have; give --labels=FILE with a line NAME CLASS for each."
        )
    fitting = [name for name in holders if posixpath.basename(name) == split]
    if len(holders) == 1 or len(fitting) == 1:
        return (fitting or holders)[0]
    offered = next(filter(None, holders))
    raise failures.BadInput(
        f"{path} has class folders in {len(holders)} folders ({classes.few(holders)}), and none of "
        f"them alone is called {split!r} as --split; give one of them, as by "
        f"--split={posixpath.basename(offered)} or as INPUT {path / offered}."
    )


def _remarks(passed_over: Sequence[image_folder.PassedOver]) -> list[pictures.Remark]:
    return [pictures.Remark(name, "left out", reason) for name, reason in passed_over]


def _stamp(content: object, files: Iterable[pathlib.Path] = ()) -> str:
    """A digest that changes with a listing, or with size or time of the last change of files."""
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((content, stats)).encode()).hexdigest()[:16]


def _parquet(paths: Sequence[pathlib.Path], options: Options) -> Input:
    try:
        from nest_dist.data.sources import parquet
    except ImportError:
        raise failures.BadInput(
            f"{paths[0]} is a Parquet file, which takes pyarrow; "
            "pip install 'nest_dist[huggingface]'."
        ) from None
    config = parquet.Parquet(
        tuple(map(str, paths)),
        options.split,
        image=options.image_column,
        label=options.label_column,
    )
    source = config.open(("--image_column", "--label_column"))
    files = sorted({pathlib.Path(group.file.name) for group in source.groups})
    numbered = not source.has_texts and _are_numbers(source.class_names)
    return _of_files(source, files, numbered)


def _tfds(paths: Sequence[pathlib.Path], options: Options) -> Input:
    (root,) = paths
    columns = options.image_column, options.label_column
    source = tfds.Tfds(str(root), options.split, *columns).open()
    files = sorted(root.glob(f"*-{options.split}.array_record-*"))
    return _of_files(source, files, _are_numbers(source.class_names))


def _of_files(source: batch.Source, files: Sequence[pathlib.Path], numbered: bool) -> Input:
    size, stamp = sum(path.stat().st_size for path in files), _stamp(source.fingerprint, files)
    return Input(source, size, stamp, numbered=numbered)


def _idx(paths: Sequence[pathlib.Path], options: Options) -> Input:
    (root,) = paths
    checks.one_of("--split", options.split, idx.FILE_PREFIX, " IDX files have these splits.")
    numbers = tuple(str(number) for number in range(256))
    source = idx.Idx(str(root), options.split, numbers).open()
    names = numbers[: int(source.labels.max(initial=0)) + 1]
    source = dataclasses.replace(source, class_names=names)
    return Input(source, source.images.nbytes, source.fingerprint, numbered=True)


def _are_numbers(names: Sequence[str]) -> bool:
    return tuple(names) == tuple(map(str, range(len(names))))


FORMATS: dict[str, Callable[[Sequence[pathlib.Path], Options], Input]] = {
    "folder": _folder,
    "tar": _tar,
    "parquet": _parquet,
    "tfds": _tfds,
    "idx": _idx,
}
