"""Strict gin: from files and bindings to a checked root object."""

import difflib
import pathlib
import re
import typing
from collections.abc import Collection, Mapping, Sequence

import gin
from etils import epath

from nest_dist.base import checks, failures
from nest_dist.config import gin_state, mistakes, shipped

Root = typing.TypeVar("Root")
_Bound: typing.TypeAlias = dict[gin_state.Key, dict[str, typing.Any]]
_SHOWN_FILES = 3  # that could give a missing value


def parse(
    root: type[Root],
    first: str,
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    renamed: Mapping[str, str],
) -> tuple[Root, str]:
    """The object that files and then bindings describe, and the operative configuration as gin.

    A later file or a binding may replace an object, such as the data of a shipped run, and a file
    one of what it includes. Then the bindings of the replaced object may stay unused; all others
    must be used.

    Args:
        first: name of the shipped file that is parsed before all others.
        gin_files: paths, or names below the shipped `gin/`.
        gin_bindings: single bindings; the last one of a name wins.
        renamed: names of earlier versions, each with its successor.
    Raises:
        BadInput: for an unknown file, name, macro or module. Also for a value that is missing or
            of the wrong type or range, and for a binding that nothing used.
    """
    if not gin_files:
        raise failures.BadInput(
            "--gin_file is not given; give a path or a shipped name: "
            f"{', '.join(shipped.names('runs'))}."
        )
    paths = [shipped.folder() / first, *(find(name, renamed) for name in gin_files)]
    with gin_state.isolated():
        with mistakes.explained(renamed):
            earlier, in_files, referred = _parse(root.__name__, paths, gin_bindings)
            made: Root = gin.get_configurable(root)()
        replaced = referred - gin_state.reachable(root.__name__)
        _refuse_unused(earlier, in_files, replaced, _of_includes(paths[0], paths[-1]))
        return made, gin.operative_config_str()


def build(name: str, text: str) -> typing.Any:
    """The object of the configurable `name`, from the text of a gin file."""
    with gin_state.isolated(), mistakes.explained({}):
        gin.parse_config(text)
        return gin.get_configurable(name)()


def values(name: str, bindings: Sequence[str]) -> dict[str, typing.Any]:
    """The values that bindings give to the parameters of one configurable.

    Raises:
        BadInput: if they cannot be read, or bind anything else.
    """
    with gin_state.isolated():
        with mistakes.explained({}):
            gin.parse_config(list(bindings))
        bound: dict[str, typing.Any] = {}
        for (scope, selector), parameters in gin_state.bound().items():
            if scope or selector.rpartition(".")[2] != name:
                raise failures.BadInput(f"{selector} is bound, where only {name} can be.")
            bound |= parameters
        return bound


def find(name: str, renamed: Mapping[str, str]) -> pathlib.Path:
    """The gin file of a path, or of a name among the shipped ones.

    Raises:
        BadInput: naming the shipped files with similar names, or the new one of `renamed`.
    """
    if name.startswith("gs://"):  # such as the config.gin of a run in a bucket
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
    by_file_name = {pathlib.PurePath(path).name: path for path in known}
    similar = difflib.get_close_matches(pathlib.Path(name).name, by_file_name, cutoff=0.75)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    close += [by_file_name[file_name] for file_name in similar]
    if new := renamed.get(name):
        hint = f"it is now {new}."
    elif close:
        hint = f"did you mean {' or '.join(dict.fromkeys(close))}?"
    else:
        hint = f"shipped runs are {', '.join(shipped.names('runs'))}."
    raise failures.BadInput(
        f"--gin_file is {name!r}, which is neither a file nor a shipped name; {hint}"
    )


def _parse(
    root: str, paths: Sequence[pathlib.Path], bindings: Sequence[str]
) -> tuple[_Bound, _Bound, set[gin_state.Key]]:
    """Parses files and bindings.

    Returns:
        All bindings before the last file and after it, and objects that the root then refers to.
    """
    earlier: _Bound = {}
    try:
        for path in paths:
            earlier = gin_state.bound()
            try:
                gin.parse_config_file(gin_state.located(path))
            except UnicodeDecodeError as error:
                raise failures.BadInput(
                    f"--gin_file is {str(path)!r}, which is no text ({error.reason}), or includes "
                    "such a file; give a gin file."
                ) from None
        in_files, referred = gin_state.bound(), gin_state.reachable(root)
        gin.parse_config(list(bindings))
    except (*mistakes.MISTAKES, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a module of the user does
        raise failures.BadInput(
            f"a module that gin imports raises {type(error).__name__} "
            f"({failures.first_line(error)}); correct it, or leave the import out."
        ) from error
    # Not `gin.finalize`, which asks for the values of macros in bindings that others replace.
    _require_values(root)
    return earlier, in_files, referred


def _require_values(root: str) -> None:
    """Names all missing values at once, each with shipped files that give it."""
    missing = gin_state.missing(root)
    if len(missing) == 1 and missing[0].startswith("%"):
        macros = {scope for scope, selector in gin_state.bound() if selector == "gin.macro"}
        hint = checks.suggestion(missing[0].removeprefix("%"), macros)
        raise failures.BadInput(f"the macro {missing[0]} has no value; {hint}")
    if not missing:
        return
    givers: dict[str, list[str]] = {}
    for name in shipped.names():
        folder = name.partition("/")[0]
        if folder not in ("runs", name):  # complete runs, and what commands begin with
            for statement in gin_state.statements(shipped.folder() / name):
                givers.setdefault(statement.name.rpartition("/")[2], []).append(name)
    listed = []
    for name in missing:
        files = list(dict.fromkeys(givers.get(name.removeprefix("%"), ())))
        listed.append(f"{name} ({_some(files)})" if files else name)
    count = "1 value is" if len(missing) == 1 else f"{len(missing)} values are"
    macro = ", or NAME = VALUE for %NAME" if any(name.startswith("%") for name in missing) else ""
    raise failures.BadInput(
        f"{count} missing: {', '.join(listed)}; include one of the shipped files in brackets, or "
        f"bind each, as in NAME.FIELD = VALUE{macro}."
    )


def _some(files: Sequence[str]) -> str:
    more = f" and {len(files) - _SHOWN_FILES} more" if len(files) > _SHOWN_FILES else ""
    return ", ".join(files[:_SHOWN_FILES]) + more


def _of_includes(first: pathlib.Path, last: pathlib.Path) -> set[str]:
    """Bindings that the last file includes, of objects that the includes or the first file name."""
    included, own = gin_state.by_origin(last)
    values = " ".join(it.text for it in (*gin_state.statements(first), *included))
    named = set(re.findall(r"[@/](\w+)\(\)", values))
    of_named = {it.name for it in included if it.name.rpartition("/")[2].split(".")[0] in named}
    return of_named - {it.name for it in own}


def _refuse_unused(
    earlier: _Bound,
    in_files: _Bound,
    replaced: set[gin_state.Key],
    of_includes: Collection[str],
) -> None:
    """Refuses unused bindings, except those that `parse` allows."""
    used, bound = gin_state.used(), gin_state.bound()
    for (scope, selector), parameters in bound.items():
        if (scope, selector) in replaced:
            continue
        is_macro = selector == "gin.macro"
        name = scope if is_macro else "/".join(filter(None, [scope, selector.rpartition(".")[2]]))
        unused = parameters.keys() - earlier.get((scope, selector), {}).keys()
        # A binding without a scope is also used in every scope. One of the command line must give a
        # value there; one of a file may be a default that each scope replaces.
        for (inner, other), used_parameters in used.items():
            if other == selector and f"{inner}/".startswith(f"{scope}/" if scope else ""):
                unused -= {
                    it
                    for it in unused & used_parameters
                    if (it, parameters[it]) in in_files.get((scope, selector), {}).items()
                    or _giving(bound, inner, other, it) == scope
                }
        if is_macro and unused:
            macros = {scope for scope, selector in used if selector == "gin.macro"}
            raise failures.BadInput(
                f"the macro {name} is set and nothing used it; {checks.suggestion(name, macros)}"
            )
        for parameter in sorted(it for it in unused if f"{name}.{it}" not in of_includes):
            short = selector.rpartition(".")[2]
            instead = [
                f"{inner}/{short}.{parameter}"
                for inner, other in used
                if other == selector and parameter in used[inner, other] and inner
            ]
            if instead and not scope:
                raise failures.BadInput(
                    f"{name}.{parameter} is set and nothing used it, because "
                    f"{' and '.join(instead)} have values of their own; bind what is meant of them."
                )
            raise failures.BadInput(
                f"{name}.{parameter} is set and nothing used it, because the run has no {name}; "
                "remove it, or refer to it with @ where it shall be used."
            )


def _giving(bound: _Bound, inner: str, selector: str, name: str) -> str | None:
    """The scope whose binding gives a parameter its value in the scope `inner`."""
    scopes = inner.split("/") if inner else []
    outer = ("/".join(scopes[:depth]) for depth in range(len(scopes), -1, -1))
    return next((scope for scope in outer if name in bound.get((scope, selector), {})), None)
