"""Parquet files as Hugging Face's library writes them, and servers of them."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import typing
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet
from support import datasets

ROW_GROUP = 5


def write(
    root: pathlib.Path, files: int = 4, pictures_each: int = 12, split: str = "train"
) -> list[str]:
    """Rectangles of three photographs, spread over files of different lengths."""
    root.mkdir(parents=True, exist_ok=True)
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(datasets.CLASSES)},
        "caption": {"_type": "Value", "dtype": "string"},
    }
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("label", pyarrow.int64()),
            ("caption", pyarrow.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {"image": {"bytes": picture, "path": name}, "label": label, "caption": name}
        for name, label, picture in datasets.pictures(pictures_each)
    ]
    ends = [len(rows) * (2 * number + number % 2) // (2 * files) for number in range(files)]
    paths = []
    for number, (start, end) in enumerate(zip(ends, [*ends[1:], len(rows)], strict=True)):
        table = pyarrow.Table.from_pylist(rows[start:end], schema=schema)
        path = root / f"{split}-{number:05d}-of-{files:05d}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=ROW_GROUP)
        paths.append(str(path))
    return paths


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder over http, with ranges; a test can make it fail.

    Attributes:
        fails: called with the path of each GET; a status other than 200 is answered instead, and
            0 ends the connection in the middle of the answer.
        asked: paths of all GETs so far.
        sent: bytes of files so far.
        ranges: whether requests for ranges of bytes are answered with ranges.
        connections: so far.
    """

    def __init__(self, root: pathlib.Path, handler: type["Handler"]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.root = root
        self.fails: typing.Callable[[str], int] = lambda path: 200
        self.asked: list[str] = []
        self.sent = 0
        self.ranges = True
        self.connections = 0

    def get_request(self) -> typing.Any:
        self.connections += 1
        return super().get_request()

    def handle_error(self, *_: typing.Any) -> None:
        pass  # a client that goes away is none

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as `Server` says."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.respond(with_body=False)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.respond(with_body=True)

    def respond(self, with_body: bool) -> None:
        self.send_file(self.path.lstrip("/"), with_body)

    def send_file(self, name: str, with_body: bool) -> None:
        path = self.server.root / name
        status = self.server.fails(self.path) if with_body else 200
        if not path.is_file():
            status = 404
        if status not in (0, 200):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        version = f'"{hashlib.sha256(content).hexdigest()}"'
        if self.headers.get("If-None-Match") == version:
            self.send_response(304)
            self.end_headers()
            return
        wanted = re.fullmatch(
            r"bytes=(\d*)-(\d*)", self.headers.get("Range", "") * self.server.ranges
        )
        start, end = 0, len(content)
        if wanted and wanted[1]:
            start, end = int(wanted[1]), min(end, int(wanted[2] or end) + 1)
        elif wanted:
            start = max(0, end - int(wanted[2]))
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", version)
        self.send_header("Content-Length", str(end - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        if status == 0:
            end = (start + end) // 2
            self.close_connection = True
        self.server.sent += end - start
        self.wfile.write(content[start:end])

    def log_message(self, *_: typing.Any) -> None:
        pass


@contextlib.contextmanager
def served(
    root: pathlib.Path, handler: type[Handler] = Handler, kind: type[Server] = Server
) -> Iterator[typing.Any]:
    """A server of the files in a folder, as long as it is open."""
    server = kind(root, handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
