"""The part of a kubelet that serves logs, for control planes without a node: the API server asks here, as it would a node."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.cluster.pki import Authority
from tests.integration.operator_harness import NODE, Installation

LOOPBACK = "127.0.0.1"
PAUSE_SECONDS = 0.05


@dataclass
class Log:
    """What a container has written so far: each line with its time."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    ended: bool = False
    cut_after: int | None = None
    """Break the connection after so many lines, once."""
    asked: int = 0
    """How often it was asked for."""

    def write(self, *texts: str) -> None:
        """Write lines, each a little later than the one before."""
        for text in texts:
            now = max(time.time(), self.lines[-1][0] + 1e-5) if self.lines else time.time()
            self.lines.append((now, text))


@dataclass
class Logs:
    """The logs of all containers, by pod and container."""

    of: dict[tuple[str, str], Log] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, str]) -> Log:
        return self.of.setdefault(key, Log())


@contextmanager
def played_logs(installation: Installation, folder: Path) -> Iterator[Logs]:
    """Serve logs in the place of the node's kubelet."""
    logs = Logs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            target = urlsplit(self.path)
            _, kind, _, pod, container = target.path.split("/")
            assert kind == "containerLogs", self.path
            log, query = logs[pod, container], {key: values[0] for key, values in parse_qs(target.query).items()}
            log.asked += 1
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                self.serve(log, query)

        def serve(self, log: Log, query: dict[str, str]) -> None:
            since = time.time() - int(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
            place = max(len(log.lines) - int(query["tailLines"]), 0) if "tailLines" in query else 0
            sent = 0
            while True:
                for moment, text in log.lines[place:]:
                    place += 1
                    if moment < since:
                        continue
                    if log.cut_after is not None and sent >= log.cut_after:
                        log.cut_after = None
                        self.close_connection = True
                        return
                    self.chunk(f"{stamp(moment)} {text}\n")
                    sent += 1
                if log.ended or "follow" not in query:
                    break
                time.sleep(PAUSE_SECONDS)
            self.wfile.write(b"0\r\n\r\n")

        def chunk(self, text: str) -> None:
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            """The tests read what the command prints."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    pair = Authority(folder / "kubelet-pki").server("kubelet", [IPv4Address(LOOPBACK)])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    addresses = [{"type": "InternalIP", "address": LOOPBACK}]
    endpoints = {"kubeletEndpoint": {"Port": server.server_port}}
    installation.patch("node", NODE, {"status": {"addresses": addresses, "daemonEndpoints": endpoints}}, subresource="status")
    try:
        yield logs
    finally:
        for log in logs.of.values():
            log.ended = True
        server.shutdown()
        server.server_close()
        thread.join()


def stamp(moment: float) -> str:
    """A time as the kubelet writes it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
