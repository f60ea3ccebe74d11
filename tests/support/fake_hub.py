"""As much of the Hugging Face Hub as its library asks for to find the files of a data set."""

import contextlib
import json
import pathlib
import re
import typing
from collections.abc import Iterator

from support import parquet

# A data set of Parquet; one that the Hub has converted; one without anything.
NAME = "someone/photographs"
CONVERTED = "someone/archive"
EMPTY = "someone/notes"
COMMIT = "0123456789" * 4
CONVERTED_COMMIT = "9876543210" * 4
BRANCHES = {
    (NAME, "main"): COMMIT,
    (NAME, COMMIT): COMMIT,
    (CONVERTED, "main"): "a" * 40,
    (CONVERTED, "refs%2Fconvert%2Fparquet"): CONVERTED_COMMIT,
    (EMPTY, "main"): "b" * 40,
}
FILES = {(NAME, COMMIT), (CONVERTED, CONVERTED_COMMIT)}


class _Handler(parquet.Handler):
    """Serves the folder as `data/` of the data sets."""

    def respond(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        file = re.fullmatch(r"/datasets/(\w+/\w+)/resolve/(\w+)/data/(.+)", path)
        if file and file.groups()[:2] in FILES:
            self.server.authorized.add(self.headers.get("Authorization"))
            self.send_file(file[3], with_body)
            return
        info = re.fullmatch(r"/api/datasets/(\w+/\w+)(?:/revision/([^/]+))?", path)
        if info and (commit := BRANCHES.get((info[1], info[2] or "main"))):
            self._send_json({"id": info[1], "sha": commit, "siblings": []})
            return
        if tree := re.fullmatch(r"/api/datasets/(\w+/\w+)/tree/(\w+)(?:/data)?", path):
            full = tree.groups() in FILES
            entries = sorted(self.server.root.iterdir()) if full else []
            self._send_json([self._entry(each) for each in entries])
            return
        known = any(name in path for name, _ in BRANCHES)
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
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
        server.authorized = set()
        yield server
