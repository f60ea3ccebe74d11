"""Where each value of a run was set: file and line, binding of the command line, or default."""

import dataclasses
import itertools
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nest_dist.config import gin_state, run_json

DEFAULT = "default"
BINDING = "--gin_bindings"


@dataclasses.dataclass(frozen=True)
class Value:
    """One value of a run."""

    path: str  # from the run, such as "Run.step.optimizer.beta_1"
    binding: str  # its name in gin, with the scope that it was bound in
    text: str
    # "FILE:LINE", "--gin_bindings", or "default"; of a macro both where it is read and where it is
    # Set
    origin: str


def written(files: Iterable[typing.Any], bindings: Sequence[str]) -> dict[str, gin_state.Statement]:
    """The last statement that binds each name: SCOPE/CLASS.FIELD, or a macro.

    Args:
        files: paths in the order in which they are read; includes are followed.
        bindings: of the command line, which come last.
    """
    in_files = (gin_state.statements(path) for path in files)
    in_bindings = (gin_state.statements_in(binding, BINDING) for binding in bindings)
    statements = itertools.chain(*in_files, *in_bindings)
    return {statement.name: statement for statement in statements}


def values(document: run_json.Json, statements: Mapping[str, gin_state.Statement]) -> list[Value]:
    """Every value of a run with its origin, in the order of the run."""
    return list(_walk(document, "Run", "", statements))


def _walk(
    document: run_json.Json,
    path: str,
    scope: str,
    statements: Mapping[str, gin_state.Statement],
) -> Iterator[Value]:
    name = document["class"].rpartition(".")[2]
    for field, value in document["fields"].items():
        statement = _statement(statements, scope, f"{name}.{field}")
        binding = statement.name if statement else f"{name}.{field}"
        origin = _origin(statement, statements) if statement else DEFAULT
        yield Value(f"{path}.{field}", binding, run_json.text(value), origin)
        for position, item in run_json.objects(value):
            inner = _scope_of(item, statement, scope)
            yield from _walk(item, f"{path}.{field}{position}", inner, statements)


def _statement(
    statements: Mapping[str, gin_state.Statement], scope: str, name: str
) -> gin_state.Statement | None:
    """The statement of the innermost scope that binds a name."""
    while True:
        if statement := statements.get(f"{scope}/{name}" if scope else name):
            return statement
        if not scope:
            return None
        scope = scope.rpartition("/")[0]


def _origin(statement: gin_state.Statement, statements: Mapping[str, gin_state.Statement]) -> str:
    macro = statements.get(statement.text.removeprefix("%")) if "%" in statement.text else None
    return f"{statement.where}, {statement.text} {macro.where}" if macro else statement.where


def _scope_of(item: run_json.Json, statement: gin_state.Statement | None, scope: str) -> str:
    """The scope in which an object was made, from the reference to it."""
    name = re.escape(item["class"].rpartition(".")[2])
    match = re.search(rf"@(?:([\w/]+)/)?(?:\w+\.)*{name}\(", statement.text if statement else "")
    return match[1] if match and match[1] else scope
