"""A small server that answers as the two model hubs do: file lists, and content after a redirect to another host."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
LFS_BYTES = 1000
"""Files of this size and more are in LFS, with a SHA-256; smaller ones are git blobs."""


@dataclass
class HubStandIn:
    """A hub with the model repository `org/name` and the dataset `org/faces`.

    `org/name` has the branches main and v1 for Hugging Face, master and v1 for ModelScope; the dataset only main, and master.

    Attributes:
        dataset: the files of the dataset; none: there is no such repository.
        also: a second name of the same repository.
    """

    files: dict[str, bytes]
    dataset: dict[str, bytes] = field(default_factory=dict)
    endpoint: str = ""
    honours_ranges: bool = True
    damaged: set[str] = field(default_factory=set)
    gated: bool = False
    also: str = "org/name"
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def contents(self) -> list[str]:
        """The paths of the files whose content was read."""
        return [path.partition("/cdn/")[2] for path, _ in self.seen if "/cdn/" in path]


@contextmanager
def hub_stand_in(files: dict[str, bytes]) -> Iterator[HubStandIn]:
    """Run the server; content comes from a second port, as it comes from a CDN."""
    hub = HubStandIn(files)
    with _serving(hub, "") as cdn, _serving(hub, cdn) as endpoint:
        hub.endpoint = endpoint
        yield hub


@contextmanager
def _serving(hub: HubStandIn, cdn: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            url = urlsplit(self.path)
            path, query = (
                unquote(url.path).replace(hub.also, "org/name"),
                {name: values[0] for name, values in parse_qs(url.query).items()},
            )
            if path.startswith("/cdn/"):
                self.content(path.removeprefix("/cdn/"))
            elif hub.gated:
                self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            elif path in ("/api/models/org/name", "/api/models/org/name/revision/main", "/api/models/org/name/revision/v1"):
                self.json({"_id": "1", "id": "org/name", "sha": COMMIT, "siblings": []})
            elif path == f"/api/models/org/name/tree/{COMMIT}":
                self.json([_entry(name, body) for name, body in hub.files.items()])
            elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
                self.redirect(path.removeprefix(f"/org/name/resolve/{COMMIT}/"))
            elif path == "/api/v1/models/org/name/repo/files" and query["Revision"] in ("master", "v1"):
                listed = [{"Path": "folder", "Type": "tree"}, *(_modelscope_entry(n, b) for n, b in hub.files.items())]
                self.json({"Code": 200, "Data": {"Files": listed}})
            elif path == "/api/v1/models/org/name/repo":
                self.redirect(query["FilePath"])
            elif path.removeprefix("/api/v1").startswith(("/api/datasets/", "/datasets/")) and hub.dataset:
                self.dataset(path, query)
            elif path.startswith("/api/models/org/name/"):
                self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def dataset(self, path: str, query: dict[str, str]) -> None:
            if path in ("/api/datasets/org/faces", "/api/datasets/org/faces/revision/main"):
                self.json({"_id": "2", "id": "org/faces", "sha": COMMIT, "siblings": []})
            elif path == f"/api/datasets/org/faces/tree/{COMMIT}":
                self.json([_entry(name, body) for name, body in hub.dataset.items()])
            elif path.startswith(f"/datasets/org/faces/resolve/{COMMIT}/"):
                self.redirect(path.removeprefix(f"/datasets/org/faces/resolve/{COMMIT}/"))
            elif path == "/api/v1/datasets/org/faces/repo/tree" and query["Revision"] == "master":
                size = int(query["PageSize"])
                begin = (int(query["PageNumber"]) - 1) * size
                listed = [_modelscope_entry(name, body) for name, body in hub.dataset.items()]
                self.json({"Code": 200, "Data": {"Files": listed[begin : begin + size]}})
            elif path == "/api/v1/datasets/org/faces/repo" and query["Revision"] == "master":
                self.redirect(query["FilePath"])
            elif path.startswith("/api/datasets/org/faces/"):
                self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def redirect(self, name: str) -> None:
            self.answer(302, b"", {"Location": f"{cdn}/cdn/{name}"})

        def content(self, name: str) -> None:
            body = {**hub.files, **hub.dataset}[name]
            if name in hub.damaged:
                body = body[:-1] + bytes([body[-1] ^ 1])
            wanted = self.headers.get("Range")
            if not wanted or not hub.honours_ranges:
                self.answer(200, body, {})
                return
            start, stop = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            self.answer(206, body[start : stop + 1], {"Content-Range": f"bytes {start}-{stop}/{len(body)}"})

        def json(self, content: object) -> None:
            self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The tests read `seen` instead."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(path: str, body: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(body), "oid": blob}
    if len(body) >= LFS_BYTES:
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry


def _modelscope_entry(path: str, body: bytes) -> dict[str, object]:
    return {"Path": path, "Type": "blob", "Size": len(body), "Sha256": hashlib.sha256(body).hexdigest(), "Revision": COMMIT}
