"""The program run inside the test's own process."""

import contextlib
import io
import unittest.mock

import pytest

from nest_dist.base import failures
from nest_dist.commands import cli


def succeeds(*arguments: object) -> str:
    """What a command prints; one that fails fails the test, and does not end its process."""

    def end(code: int) -> None:
        raise AssertionError(f"exit code {code}: {said.getvalue()}")

    printed, said = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
        unittest.mock.patch.object(failures, "end_now", end),
    ):
        cli.main(list(map(str, arguments)))
    return printed.getvalue()


def refuses(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line with which a command ends; its exit code is checked."""

    def end(code: int) -> None:
        assert code == failures.USAGE
        raise SystemExit(code)

    monkeypatch.setattr(failures, "end_now", end)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit):
        cli.main(list(map(str, arguments)))
    (line,) = said.getvalue().splitlines()
    return line
