"""As much of the Hugging Face Hub as its library asks for to stream one data set."""

import contextlib
import json
import pathlib
import typing
from collections.abc import Iterator

from support import parquet

NAME = "someone/photographs"
COMMIT = "0123456789" * 4


class _Handler(parquet.Handler):
    """Serves the folder as `data/` of the data set NAME."""

    def respond(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        file = f"/datasets/{NAME}/resolve/{COMMIT}/data/"
        listing = f"/api/datasets/{NAME}/tree/{COMMIT}"
        if path.startswith(file):
            self.send_file(path.removeprefix(file), with_body)
        elif path == listing:
            self._send_json([{"type": "directory", "path": "data", "oid": COMMIT}])
        elif path == f"{listing}/data":
            self._send_json([self._entry(each) for each in sorted(self.server.root.iterdir())])
        elif path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/{COMMIT}"):
            self._send_json({"id": NAME, "sha": COMMIT, "siblings": []})
        else:
            code = "EntryNotFound" if NAME in path else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _entry(self, path: pathlib.Path) -> dict[str, typing.Any]:
        size = path.stat().st_size
        return {"type": "file", "path": f"data/{path.name}", "size": size, "oid": COMMIT}

    def _send_json(self, value: typing.Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@contextlib.contextmanager
def served(root: pathlib.Path) -> Iterator[parquet.Server]:
    """A Hub on this machine; the library finds it by the variable HF_ENDPOINT."""
    with parquet.served(root, _Handler) as server:
        yield server
