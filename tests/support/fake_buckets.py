"""Buckets of Google Cloud Storage on this machine: the part of its JSON API that a run uses.

An object `a/b` of the bucket `mine` is the file `mine/a/b` of a folder. Objects are whole or absent
and carry generations, as the real ones do; nothing can be appended to one.
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import threading
import time
import urllib.parse

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)(/.+)?")
LIST = re.compile(r"/(?:upload/)?storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")


class Buckets:
    """A server; a context manager.

    Attributes:
        folder: holds a folder for each bucket.
        environment: with which gcsfs, TensorStore and Google's own client come here.
    """

    def __init__(self, folder: pathlib.Path, host: str = "127.0.0.1"):
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.generations: dict[str, int] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer((host, 0), _Handler)
        self._server.buckets = self
        self._server.daemon_threads = True
        address = f"http://{host}:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_CLOUD_PROJECT": "my-project",
            "NO_GCE_CHECK": "true",
            # The kind of a bucket is asked by gRPC, which is not spoken here.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def names(self, bucket):
        root = self.folder / bucket
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def resource(self, bucket, name):
        """What the API says of an object; None if there is none."""
        path = self.folder / bucket / name
        try:
            found = path.stat()
        except OSError:
            return None
        if not path.is_file():
            return None
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.st_mtime))
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(found.st_size),
            "generation": str(self.generations.setdefault(f"{bucket}/{name}", time.time_ns())),
            "metageneration": "1",
            "timeCreated": moment,
            "updated": moment,
            "storageClass": "STANDARD",
            "contentType": "application/octet-stream",
        }

    def store(self, bucket, name, data):
        """At once."""
        path = self.folder / bucket / name
        with self.lock:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.folder / f".{threading.get_ident()}"
            draft.write_bytes(data)
            draft.replace(path)
            self.generations[f"{bucket}/{name}"] = time.time_ns()
        return self.resource(bucket, name)

    def remove(self, bucket, name):
        """Prefixes are no folders: nothing is left of one that is empty."""
        path = self.folder / bucket / name
        with self.lock:
            path.unlink()
            self.generations.pop(f"{bucket}/{name}", None)
            with contextlib.suppress(OSError):
                for parent in path.relative_to(self.folder / bucket).parents[:-1]:
                    os.rmdir(self.folder / bucket / parent)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self):
        if match := OBJECT.fullmatch(self.place):
            self.get(*map(urllib.parse.unquote, match.groups()[:2]))
        elif match := LIST.fullmatch(self.place):
            self.list(match[1])
        elif (match := BUCKET.fullmatch(self.place)) and (self.folder / match[1]).is_dir():
            self.answer(200, {"kind": "storage#bucket", "name": match[1], "id": match[1]})
        else:
            self.missing()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.place.startswith("/upload/session/"):
            self.take(body)
        elif match := OBJECT.fullmatch(self.place):
            self.copy(*map(urllib.parse.unquote, match.groups()))
        elif (match := LIST.fullmatch(self.place)) and not (self.folder / match[1]).is_dir():
            self.missing()
        elif match:
            self.upload(match[1], body)
        else:
            self.missing()

    def do_PUT(self):
        self.do_POST()  # further parts of an upload

    def do_DELETE(self):
        bucket, name = map(urllib.parse.unquote, OBJECT.fullmatch(self.place).groups()[:2])
        if self.allowed(bucket, name):
            self.buckets.remove(bucket, name)
            self.answer(204)

    def get(self, bucket, name):
        resource = self.allowed(bucket, name)
        if not resource:
            return
        if self.query.get("alt") != "media" and not self.path.startswith("/download"):
            self.answer(200, resource)
            return
        data = (self.folder / bucket / name).read_bytes()
        headers = {"X-Goog-Generation": resource["generation"], "X-Goog-Metageneration": "1"}
        headers["X-Goog-Stored-Content-Length"] = str(len(data))
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self.answer(200, data, headers)
            return
        if wanted[1]:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        else:
            first, last = max(0, len(data) - int(wanted[2])), len(data) - 1
        if first > last:
            self.answer(416)
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.answer(206, data[first : last + 1], headers)

    def list(self, bucket):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        first, end = self.query.get("startOffset", ""), self.query.get("endOffset")
        items, prefixes = [], set()
        for name in self.buckets.names(bucket):
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                prefixes.add(prefix + head + delimiter)
            elif resource := self.buckets.resource(bucket, name):
                items.append(resource)
        answer = {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}
        self.answer(200, {key: value for key, value in answer.items() if value})

    def upload(self, bucket, body):
        name, data = self.query.get("name"), body
        if self.query["uploadType"] == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, rest = body.split(b"--" + boundary, 2)
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            data = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1]
            data = re.sub(rb"\r?\n--" + re.escape(boundary) + rb"--\s*$", b"", data)
        elif self.query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
            number = str(time.time_ns())
            self.buckets.uploads[number] = (f"{bucket}/{name}", bytearray())
            self.answer(
                200, b"", {"Location": f"http://{self.headers['Host']}/upload/session/{number}"}
            )
            return
        if self.query.get("ifGenerationMatch") == "0" and self.buckets.resource(bucket, name):
            self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        elif self.allowed(bucket, name, may_be_new=True):
            self.answer(200, self.buckets.store(bucket, name, data))

    def take(self, part):
        place, data = self.buckets.uploads[self.place.rpartition("/")[2]]
        data += part
        whole = self.headers.get("Content-Range", "bytes */*").rpartition("/")[2]
        if whole != "*" and len(data) >= int(whole):
            self.answer(200, self.buckets.store(*place.split("/", 1), bytes(data)))
        else:
            self.answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})

    def copy(self, bucket, name, what):
        """rewriteTo, copyTo and moveTo."""
        if not self.allowed(bucket, name):
            return
        move = re.fullmatch(r"/moveTo/o/(.+)", what)
        other = re.fullmatch(r"/\w+To/b/(.+?)/o/(.+)", what)
        target, new = (bucket, move[1]) if move else other.groups()
        data = (self.folder / bucket / name).read_bytes()
        resource = self.buckets.store(target, new, data)
        if move:
            self.buckets.remove(bucket, name)
        whole = {"kind": "storage#rewriteResponse", "done": True, "resource": resource}
        whole |= {"totalBytesRewritten": resource["size"], "objectSize": resource["size"]}
        self.answer(200, whole if "/rewriteTo/" in what else resource)

    def allowed(self, bucket, name, may_be_new=False):
        """The object, if there is one and the generation is as asked for; else it is answered."""
        resource = self.buckets.resource(bucket, name)
        if not resource and may_be_new:
            resource = {"generation": "0"}
        if not resource:
            self.missing()
        elif self.query.get("ifGenerationMatch", resource["generation"]) != resource["generation"]:
            self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        elif self.query.get("ifGenerationNotMatch") == resource["generation"]:
            self.answer(304)
        else:
            return resource
        return None

    def missing(self):
        self.answer(404, {"error": {"code": 404, "message": f"No such object: {self.place}"}})

    def answer(self, code, content=b"", headers=()):
        self.send_response(code)
        if isinstance(content, dict):
            self.send_header("Content-Type", "application/json; charset=UTF-8")
            content = json.dumps(content).encode()
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(content)

    @property
    def buckets(self):
        return self.server.buckets

    @property
    def folder(self):
        return self.server.buckets.folder

    @property
    def place(self):
        return self.path.partition("?")[0]

    @property
    def query(self):
        return dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))

    def log_message(self, *_):
        pass
