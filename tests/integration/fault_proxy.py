"""A proxy that stands before a real S3 server and does to its answers what networks and other people do.

Requests go through unchanged, Host header included, so signatures stay valid. Rules see each exchange and may change it.
"""

import contextlib
import fcntl
import http.client
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Exchange:
    """One request and its answer. A rule may change status, headers and body, or cut the answer off."""

    method: str
    path: str
    headers: dict[str, str]
    sent: bytes = field(default=b"", repr=False)
    """The request's own body; a rule that runs before may change it."""
    status: int = 0
    body: bytes = b""
    answer_headers: list[tuple[str, str]] = field(default_factory=list)
    cut_after: int | None = None
    """Send only so many bytes of the body, though its length says more, and close the connection."""
    resets: bool = False
    """Close it as a load balancer that forgot it, or a server that was killed: with a reset in place of an end."""
    drops: bool = False
    """Close the connection without an answer."""

    @property
    def is_content(self) -> bool:
        """Whether this reads an object's content."""
        return self.method == "GET" and len(unquote(urlsplit(self.path).path).strip("/").split("/")) > 1

    @property
    def key(self) -> str:
        """The object's key."""
        return unquote(urlsplit(self.path).path).strip("/").partition("/")[2]


Rule = Callable[[Exchange], None]


@dataclass
class FaultProxy:
    """Where it listens, what it saw, and its rules: `before` runs before a request is passed on, `after` on the answer."""

    endpoint: str
    before: list[Rule] = field(default_factory=list)
    after: list[Rule] = field(default_factory=list)
    seen: list[Exchange] = field(default_factory=list)

    def contents(self) -> list[Exchange]:
        """The reads of content so far."""
        return [exchange for exchange in self.seen if exchange.is_content]


@contextmanager
def fault_proxy(upstream: str, tls: ssl.SSLContext | None = None) -> Iterator[FaultProxy]:
    """Run a proxy before the server at the URL `upstream`; with `tls` it is reached over https."""
    target = urlsplit(upstream)
    proxy = FaultProxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            exchange = Exchange(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            proxy.seen.append(exchange)
            for rule in list(proxy.before):
                rule(exchange)
            if exchange.drops:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if not exchange.status:
                self.pass_on(exchange, exchange.sent)
            for rule in list(proxy.after):
                rule(exchange)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client need not read to the end
                self.answer(exchange)

        def pass_on(self, exchange: Exchange, body: bytes) -> None:
            connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=30)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                exchange.status, exchange.body = answer.status, answer.read()
                length = answer.getheader("Content-Length")
                kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS]
                exchange.answer_headers = [*kept, ("Content-Length", length or "0")] if self.command == "HEAD" else kept
            finally:
                connection.close()

        def answer(self, exchange: Exchange) -> None:
            self.send_response(exchange.status)
            for name, value in exchange.answer_headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(exchange.body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if exchange.cut_after is None:
                self.wfile.write(exchange.body)
                return
            self.wfile.write(exchange.body[: exchange.cut_after])
            self.wfile.flush()
            self.close_connection = True
            if not exchange.resets:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            end = time.monotonic() + 5
            while _unacknowledged(self.connection) and time.monotonic() < end:  # a reset throws away what is still on its way
                time.sleep(0.005)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """The tests read `seen` instead."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    proxy.endpoint = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes that were sent and that the other side has not acknowledged yet."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])
