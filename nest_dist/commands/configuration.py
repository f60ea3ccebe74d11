"""gin made strict: from files and bindings to a checked `Run`, each mistake in one line."""

import dataclasses
import difflib
import logging
import os
import pathlib
import re
import typing
from collections.abc import Sequence

import gin
from etils import epath

from nest_dist.base import checks, failures
from nest_dist.commands import run as runs
from nest_dist.commands import shipped

# Scope and selector, and the name of a parameter.
Bound = tuple[tuple[str, str], str]

# gin would also look for an include among Python's packages, and breaks on a folder `data/` or
# `model/` in the working folder, which Python takes for one. Files are all that we include.
gin.config._FILE_READERS = [
    (open, os.path.isfile),
    (lambda name: epath.Path(name).open(), lambda name: name.startswith("gs://")),
]


def load(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> runs.Run:
    """The run that files and then bindings describe.

    A later file may replace a part of what an earlier one says, such as the data of a shipped run;
    then the bindings of the part that is replaced stay unused. Others do not.

    Args:
        gin_files: paths, or names below the shipped `gin/`.
        gin_bindings: single bindings; the last one of a name wins.
    Raises:
        BadInput: for an unknown file, name, macro or module, a value of the wrong type or out of
            range, a missing value, or a binding that nothing used.
    """
    if not gin_files:
        raise failures.BadInput(
            "--gin_file is not given; give a path or a shipped name: "
            f"{', '.join(shipped.names('runs'))}."
        )
    paths = [find(name) for name in gin_files]
    gin.clear_config()
    gin.add_config_file_search_path(str(shipped.folder()))
    logging.disable(logging.CRITICAL)  # gin logs each path that it tries for an include
    try:
        earlier = _parse(paths, gin_bindings)
        run = runs.Run()  # type: ignore[call-arg]  # gin fills it in
    except (ValueError, TypeError, SyntaxError, OSError, ImportError, RuntimeError) as error:
        raise failures.BadInput(_explain(error)) from error
    finally:
        logging.disable(logging.NOTSET)
    _refuse_unused(earlier)
    return run


def text() -> str:
    """The operative configuration of the `Run` made last: all values, defaults included."""
    return gin.operative_config_str()


def find(name: str) -> pathlib.Path:
    """The gin file of a path, or of a name among the shipped ones.

    Raises:
        BadInput: with the close names.
    """
    if name.startswith("gs://"):  # as the folder of a run in a bucket has it
        return epath.Path(name)
    try:
        for path in (pathlib.Path(name), shipped.folder() / name):
            if path.is_file():
                return path
    except OSError as error:
        raise failures.BadInput(
            f"--gin_file is {name!r}, which cannot be read ({error.strerror}); give another path."
        ) from None
    known = shipped.names()
    tails = {pathlib.PurePath(each).name: each for each in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    close += [
        tails[tail]
        for tail in difflib.get_close_matches(pathlib.Path(name).name, tails, cutoff=0.75)
    ]
    if close:
        hint = f"did you mean {' or '.join(dict.fromkeys(close))}?"
    else:
        hint = f"shipped runs are {', '.join(shipped.names('runs'))}."
    raise failures.BadInput(
        f"--gin_file is {name!r}, which is neither a file nor a shipped name; {hint}"
    )


def _parse(paths: Sequence[pathlib.Path], bindings: Sequence[str]) -> set[Bound]:
    """Takes files and bindings in; returns what was bound before the last file."""
    earlier: set[Bound] = set()
    for path in paths:
        # gin has no public way to list bindings; this table is what its own text form prints.
        earlier = {(key, name) for key, names in gin.config._CONFIG.items() for name in names}
        try:
            gin.parse_config_file(str(path))
        except UnicodeDecodeError as error:
            raise failures.BadInput(
                f"--gin_file is {str(path)!r}, which is no text ({error.reason}), or includes such "
                "a file; give a gin file."
            ) from None
    gin.parse_config(list(bindings))
    gin.finalize()
    return earlier


def _refuse_unused(earlier: set[Bound]) -> None:
    for (scope, selector), parameters in gin.config._CONFIG.items():
        is_macro = selector == "gin.macro"
        name = scope if is_macro else "/".join(filter(None, [scope, selector.rpartition(".")[2]]))
        missing = {each for each in parameters if ((scope, selector), each) not in earlier}
        missing -= _used_parameters(scope, selector)
        if is_macro and missing:
            raise failures.BadInput(
                f"the macro {name} is set and nothing used it; {_other_macros(name)}"
            )
        for parameter in sorted(missing):
            raise failures.BadInput(
                f"{name}.{parameter} is set and nothing used it, because the run has no {name}; "
                "remove it, or refer to it with @ where it shall be used."
            )


def _used_parameters(scope: str, selector: str) -> set[str]:
    """Parameters that some call took, in this scope or in one that inherits from it."""
    return {
        parameter
        for (inner, used), parameters in gin.config._OPERATIVE_CONFIG.items()
        if used == selector and f"{inner}/".startswith(f"{scope}/" if scope else "")
        for parameter in parameters
    }


def _other_macros(name: str) -> str:
    used = {scope for scope, selector in gin.config._OPERATIVE_CONFIG if selector == "gin.macro"}
    return checks.suggestion(name, used)


def _explain(error: Exception) -> str:
    """gin's message in one line, with the nearest right names."""
    message = str(error)
    first = failures.first_line(error)
    place = re.search(r"In (?:file|bindings string)[^\n]*", message)
    where = f" ({place[0].strip()[0].lower()}{place[0].strip()[1:]})" if place else ""
    if match := re.search(r"Configurable '(\S+)' doesn't have a parameter named '(\S+)'", message):
        name = match[1].rpartition(".")[2]
        known = [field.name for field in dataclasses.fields(_registered()[name])]
        return f"{name} has no parameter {match[2]!r}{where}; {checks.suggestion(match[2], known)}"
    if match := re.search(r"No configurable matching (?:reference )?'@?([^'()]+)", message):
        name = match[1].rpartition("/")[2]
        return f"there is no {name!r} to configure{where}; {_other_names(name)}"
    if match := re.search(r"No bindings specified for '(.+)/gin\.macro'", message):
        macros = {scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"}
        return f"the macro %{match[1]} has no value; {checks.suggestion(match[1], macros)}"
    if match := re.search(r"No values supplied by Gin or caller for arguments: \[(.+)\]", message):
        name = re.search(r"In call to configurable '([^']+)'", message)
        owner = name[1].rpartition(".")[2] if name else "the configuration"
        return f"{owner} has no value for {match[1]}; bind each, as in {owner}.NAME = VALUE."
    if isinstance(error, RecursionError):
        return "a value refers to itself, as in NesT.dim = @NesT(); give it a value of its own."
    if isinstance(error, SyntaxError):
        return f"gin cannot read {first!r}; put quotes around text, and write NAME.FIELD = VALUE."
    if match := re.search(r"Unable to open file: (\S+)\. Searched", message):
        return f"the included file {match[1]!r} is not there{where}; {_close_files(match[1])}"
    return f"{first.rstrip('.')}{where}" + ("" if where else ".")


def _other_names(name: str) -> str:
    return checks.suggestion(name, _registered())


def _registered() -> dict[str, typing.Any]:
    """Everything that gin files may configure, by its short name."""
    registry = gin.config._REGISTRY._selector_map  # gin offers no list of it
    return {
        selector.rpartition(".")[2]: entry.wrapped
        for selector, entry in registry.items()
        if not selector.startswith("gin.")
    }


def _close_files(name: str) -> str:
    return checks.suggestion(name, shipped.names(os.path.dirname(name)))
