"""As much of the Hugging Face Hub as its library asks for: files of data sets, and models."""

import base64
import contextlib
import hashlib
import json
import pathlib
import re
import typing
import urllib.parse
from collections.abc import Iterator

import pytest
from huggingface_hub import constants
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


TOKEN = "hf_of_me"
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")


class Models(parquet.Server):
    """A Hub of models.

    Attributes:
        fails: as of `parquet.Server`, for each request.
        repositories: contents of files by path, by OWNER/NAME.
        blobs: contents that are uploaded and in no commit yet, by sha256.
        private: the names of repositories that were made so.
    """

    def __init__(self, root: pathlib.Path, handler: type[parquet.Handler]) -> None:
        super().__init__(root, handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.private: set[str] = set()


class _ModelHandler(parquet.Handler):
    """Answers what `create_repo`, `upload_folder` and `hf_hub_download` ask."""

    server: Models

    def respond(self, with_body: bool) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if tree := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/main", path):
            files = self.server.repositories[tree[1]]
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                for name, content in files.items()
            ]
            self._send(200, entries)
            return
        file = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/main/(.+)", path)
        content = file and self.server.repositories.get(file[1], {}).get(file[2])
        if content is None:
            self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._send(200, content, headers)

    def _change(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        self.server.asked.append(path)
        length = int(self.headers.get("Content-Length", 0))
        status = self.server.fails(path)
        if status == 0:  # the connection is cut while the client sends
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if status != 200:
            self._send(status, {})
            return
        is_blob = path.startswith("/blobs/")  # whose address is a secret of its own
        if not is_blob and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {}, {"X-Error-Message": "Invalid username or password."})
            return
        if is_blob:
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.blobs[oid] = body
            self._send(200, {})
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._answer(path, json.loads(body))

    do_POST = do_PUT = _change  # noqa: N815

    def _answer(self, path: str, asked: typing.Any) -> None:
        if path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}"
            if not name.startswith("me/"):
                self._send(403, {"error": "You don't have the rights to create a model there"})
                return
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, {".gitattributes": b""})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self._send(409 if known else 200, {"url": f"{self.server.address}/{name}"})
        elif path == "/api/validate-yaml":
            lines = asked["content"].split("---\n")[1].splitlines()
            card = {
                key: json.loads(value) for key, _, value in (it.partition(": ") for it in lines)
            }
            wrong = [] if card["license"] in LICENSES else [{"message": '"license" must be one of'}]
            self._send(400 if wrong else 200, {"errors": wrong, "warnings": []})
        elif "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "regular" if file["path"].endswith((".md", ".json")) else "lfs",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in asked["files"]
            ]
            self._send(200, {"files": modes})
        else:
            assert path.endswith(".git/info/lfs/objects/batch"), path
            objects = [
                {**it, "actions": {"upload": {"href": f"{self.server.address}/blobs/{it['oid']}"}}}
                for it in asked["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        self.server.repositories[name] |= files
        address = f"{self.server.address}/{name}/commit/{COMMIT}"
        self._send(200, {"commitUrl": address, "commitOid": COMMIT})

    def _send(
        self, status: int, value: typing.Any, headers: typing.Mapping[str, str] | None = None
    ) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def of_models(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Models]:
    """A Hub of models that the library in this process talks to, with `TOKEN` and a new cache."""
    with parquet.served(folder, _ModelHandler, Models) as server:
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_TOKEN_PATH": str(folder / "token"),
            # Xet is a protocol of its own; without it the library takes Git LFS.
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
