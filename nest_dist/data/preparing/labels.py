"""Which class a picture belongs to, and which label a class has."""

import pathlib
import posixpath
from collections.abc import Mapping, Sequence

from nest_dist.base import failures


def lines(flag: str, path: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        BadInput: if it cannot be read or has none.
    """
    try:
        text = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise failures.BadInput(
            f"{flag} is {path}, which cannot be read ({failures.first_line(error)}); give a text "
            "file."
        ) from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise failures.BadInput(f"{flag} is {path}, which is empty; give one line for each.")
    return found


def by_folder(names: Sequence[str]) -> list[str]:
    """The class of each picture: the folder that it lies in, "" for none."""
    return [posixpath.basename(posixpath.dirname(name)) for name in names]


def by_file(names: Sequence[str], path: str) -> list[str]:
    """The class of each picture as a file says: NAME CLASS a line, or one class a line.

    Between name and class is a tab, a comma or a space; the name needs neither folder nor suffix,
    and lines about other files do not matter. Classes alone are those of the pictures in the order
    of their names. Kaggle's LOC_val_solution.csv has boxes after the class, which are passed over.

    Raises:
        BadInput: if a picture has no class.
    """
    given = lines("--labels", path)
    stems = [_stem(name) for name in names]
    known = frozenset(stems)
    boxes = given[0].endswith("PredictionString")
    classes: dict[str, str] = {}
    for line in given:
        for separator in "\t, ":
            name, _, value = line.partition(separator)
            if value and _stem(name.strip()) in known:
                classes[_stem(name.strip())] = value.split()[0] if boxes else value.strip()
                break
    if not classes:
        if len(given) != len(names):
            raise failures.BadInput(
                f"--labels is {path} with {len(given)} lines, none of which names a picture such "
                f"as {names[0]}, and there are {len(names)} pictures; give NAME CLASS a line, or "
                "one class a line for all pictures in the order of their names."
            )
        order = sorted(range(len(names)), key=names.__getitem__)
        found = [""] * len(names)
        for place, line in zip(order, given, strict=True):
            found[place] = line
        return found
    if len(known) < len(names):
        twice = next(stem for stem in known if stems.count(stem) > 1)
        raise failures.BadInput(
            f"--labels goes by names, and {stems.count(twice)} pictures are called {twice}; give "
            "pictures with different names."
        )
    missing = [name for name, stem in zip(names, stems, strict=True) if stem not in classes]
    if missing:
        raise failures.BadInput(
            f"--labels is {path}, which has no line for {len(missing)} of {len(names)} pictures, "
            f"the first is {missing[0]}; add them."
        )
    return [classes[stem] for stem in stems]


def table(found: Sequence[str], wanted: Sequence[str], whose: str) -> list[int]:
    """The label to write for each label of a source.

    Args:
        found: the source's names of classes.
        wanted: names in the order of the labels to write.
        whose: where those come from, for the text of errors.
    Raises:
        BadInput: for a class that is not wanted, or one that is wanted twice.
    """
    label_of: Mapping[str, int] = {name: label for label, name in enumerate(wanted)}
    if len(label_of) < len(wanted):
        twice = next(name for name in label_of if list(wanted).count(name) > 1)
        raise failures.BadInput(
            f"class {twice!r} stands twice in {whose}; give each class a name of its own."
        )
    unknown = [name for name in found if name not in label_of]
    if not unknown:
        return [label_of[name] for name in found]
    if all(name.isdecimal() and int(name) < len(wanted) for name in found):
        return [int(name) for name in found]  # the source knows numbers only
    raise failures.BadInput(
        f"class {unknown[0]!r} is not among the {len(wanted)} classes of {whose}; splits of one "
        "data set share their classes: name all with --class_names, or choose another --output."
    )


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]
