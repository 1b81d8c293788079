"""GET over a connection that is kept: sends a request, reads the head of its answer, and its body into the caller's memory.

Knows what answers of object stores look like: a status, headers, a Content-Length. Other answers are left to http.client, which
costs four times as much for a small one: its headers go through the parser of e-mails (docs/decisions/0120).
"""

import http.client
import io
import re
import select
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress

HEAD_BYTES = 64 * 1024
"""So long the head of an answer may be."""

_FIRST_BYTES = 16 * 1024
"""What is read at first: the head, and of a small object the beginning of its content."""

_END = re.compile(rb"\n\r?\n")
"""An empty line. Its carriage return may be missing (RFC 9112, 2.2)."""

_LONGEST_END = len(b"\n\r\n")
_WITHOUT_BODY = (http.client.NO_CONTENT, http.client.NOT_MODIFIED)


class Answer(ABC):
    """What a server answers.

    Attributes:
        status: HTTP's.
        headers: by their names in small letters.
    """

    status: int
    headers: dict[str, str]

    @abstractmethod
    def readinto(self, into: memoryview) -> int:
        """Read some of the body to the beginning of `into`; return how many bytes that were, 0 at the end."""

    @property
    @abstractmethod
    def is_whole(self) -> bool:
        """Whether the body was read to its end, and the connection can be used again."""

    def read(self, most: int) -> bytes:
        """Return the body, or so many bytes of it."""
        buffer = memoryview(bytearray(most))
        done = 0
        while done < most and (count := self.readinto(buffer[done:])):
            done += count
        return bytes(buffer[:done])


class Connection:
    """A connection, which asks one thing at a time.

    Args:
        connected: what was connected, through a proxy and TLS where need be.
    """

    def __init__(self, connected: http.client.HTTPConnection) -> None:
        self._connected = connected
        self._socket: socket.socket = connected.sock
        self._first = memoryview(bytearray(_FIRST_BYTES))

    def get(self, target: str, headers: Mapping[str, str]) -> Answer:
        """Ask for something.

        Raises:
            OSError, http.client.HTTPException: no answer.
            ValueError: a header has a line break or the like.
        """
        if not all(value.isprintable() for value in headers.values()):
            raise ValueError(f"a header of the request for {target} has a character that none may have")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"GET {target} HTTP/1.1\r\n{lines}Accept-Encoding: identity\r\n\r\n".encode("latin-1"))
        begun, end = self._head()
        return _plain(begun, end, self._socket) or _any_other(begun, self._socket)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer: neither the end of the connection nor anything unasked."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        is_decrypted = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
        return not is_decrypted and not poll.poll(0)

    def close(self) -> None:
        """End it."""
        self._connected.close()

    def _head(self) -> tuple[memoryview, int]:
        """Read until the head is whole; return what was read, and where the body begins in it."""
        begun, count = self._first, 0
        while True:
            read = self._socket.recv_into(begun[count:])
            if not read:
                raise http.client.RemoteDisconnected("the server closed the connection without an answer")
            searched = max(0, count - _LONGEST_END)
            if end := _END.search(begun[searched : count + read]):
                return begun[: count + read], searched + end.end()
            count += read
            if count == HEAD_BYTES:
                raise http.client.LineTooLong("head of the answer")
            if count == len(begun):
                begun = memoryview(bytearray(begun) + bytes(HEAD_BYTES - count))

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()


class _Plain(Answer):
    """An answer with a Content-Length."""

    def __init__(self, status: int, headers: dict[str, str], length: int, begun: memoryview, connection: socket.socket) -> None:
        self.status, self.headers = status, headers
        self._left, self._begun, self._socket = length, begun, connection
        self._is_tls = isinstance(connection, ssl.SSLSocket)
        self._is_kept = "close" not in headers.get("connection", "").lower() and len(begun) <= length

    def readinto(self, into: memoryview) -> int:
        into = into[: self._left]
        if not into:
            return 0
        if self._begun:
            count = min(len(into), len(self._begun))
            into[:count], self._begun = self._begun[:count], self._begun[count:]
        else:
            count = self._socket.recv_into(into)
            # TLS gives 16 KiB at a time
            while 0 < count < len(into) and self._is_tls and (more := self._socket.recv_into(into[count:])):
                count += more
        self._left -= count
        return count

    @property
    def is_whole(self) -> bool:
        return not self._left and self._is_kept


class _Other(Answer):
    """An answer as http.client reads it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status, self.headers = response.status, {name.lower(): value for name, value in response.getheaders()}

    def readinto(self, into: memoryview) -> int:
        return self._response.readinto(into)

    @property
    def is_whole(self) -> bool:
        return self._response.isclosed() and not self._response.will_close


def _plain(begun: memoryview, end: int, connection: socket.socket) -> Answer | None:
    """Return the answer that begins so, if it is one with a Content-Length and nothing unusual."""
    head = str(begun[:end], "latin-1")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    if head.count("\n") != len(lines) + 2:  # a line ends without its carriage return
        return None
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if version != "HTTP/1.1" or not code.isdecimal() or int(code) < http.client.OK or int(code) in _WITHOUT_BODY:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or name[:1] in (" ", "\t"):
            return None
        value = value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or not length.isdecimal():
        return None
    return _Plain(int(code), headers, int(length), begun[end:], connection)


def _any_other(begun: memoryview, connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(_Replayed(bytes(begun), connection), method="GET")  # type: ignore[arg-type]
    response.begin()
    return _Other(response)


class _Replayed(io.RawIOBase):
    """A connection of which something was read already; what http.client wants of a socket."""

    def __init__(self, begun: bytes, connection: socket.socket) -> None:
        self._begun, self._socket = begun, connection

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        if not self._begun:
            return self._socket.recv_into(into)
        count = min(len(into), len(self._begun))
        into[:count], self._begun = self._begun[:count], self._begun[count:]
        return count
