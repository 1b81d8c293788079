"""Answers of servers are read as http.client reads them, whatever form they have, and no connection is used again wrongly."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from rewardfl_trainer.staging.http1 import HEAD_BYTES, Connection

BODY = bytes(range(256)) * 1000
LENGTH = b"Content-Length: 256000\r\n"


@contextmanager
def answering(*pieces: bytes) -> Iterator[tuple[Connection, list[bytes]]]:
    """A server that takes one request, answers with these pieces, and closes the connection."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked.append(connection.recv(HEAD_BYTES))
            for piece in pieces:
                connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        connected = http.client.HTTPConnection(*listener.getsockname()[:2], timeout=10)
        connected.connect()
        connection = Connection(connected)
        try:
            yield connection, asked
        finally:
            connection.close()
            thread.join(10)


def fetch(*pieces: bytes) -> tuple[int, dict[str, str], bytes, bool]:
    """What is answered, and whether the connection is fit for another request."""
    with answering(*pieces) as (connection, _):
        answer = connection.get("/bucket/key", {"Host": "here"})
        return answer.status, answer.headers, answer.read(len(BODY) + 1), answer.is_whole


def in_chunks(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        ([b"HTTP/1.1 200 OK\r\n", LENGTH, b"\r\n", BODY], True),
        ([b"HTTP/1.1 206 Partial Content\r\nETag:  \"a\" \r\n" + LENGTH + b"\r\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r", b"\n" + BODY], True),
        ([b"HTTP/1.1 200\r\n" + LENGTH + b"X: " + b"x" * 40_000 + b"\r\n\r\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\r\nConnection: Close\r\n" + LENGTH + b"\r\n" + BODY], False),
        ([b"HTTP/1.1 200 OK\r\nConnection: keep-alive, close\r\n" + LENGTH + b"\r\n" + BODY], False),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", in_chunks(BODY)], True),
        ([b"HTTP/1.1 200 OK\r\n\r\n" + BODY], False),
        ([b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY], False),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\r\nX: 1\r\nX: 2\r\n" + LENGTH + b"\r\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\r\n" + LENGTH + LENGTH + b"\r\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n" + LENGTH + b"\r\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\nX: 1\nContent-Length: 256000\n", b"\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\r\nX: 1\n" + LENGTH + b"\r\n" + BODY], True),
        ([b"HTTP/1.1 200 OK\r\n" + LENGTH.replace(b"\r", b"") + b"\r\n" + BODY], True),
    ],
    ids=[
        "in pieces", "at once", "the end of the head in two", "a long head", "closing", "closing among others", "chunked",
        "until the end", "HTTP 1.0",
        "after a 100", "a header twice", "its length twice", "a folded header",
        "lines without carriage returns", "one such line", "one such line, the last",
    ],
)  # fmt: skip
def test_an_answer_is_read_whatever_its_form(pieces: Sequence[bytes], kept: bool) -> None:
    status, headers, body, whole = fetch(*pieces)

    assert status in (200, 206)
    assert body == BODY
    assert whole is kept
    assert all(name == name.lower() for name in headers)
    assert status != 206 or headers["etag"] == '"a"'


def test_an_answer_that_is_cut_off_ends_early_and_its_connection_is_not_used_again() -> None:
    _, _, body, whole = fetch(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY[:1000])

    assert body == BODY[:1000]
    assert not whole


@pytest.mark.parametrize("surplus", [b"", b"HTTP/1.1 200 OK\r\n"], ids=["closed", "more than announced"])
def test_a_connection_that_was_closed_or_says_more_is_not_quiet(surplus: bytes) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY + surplus) as (connection, _):
        assert connection.is_quiet
        assert connection.get("/", {"Host": "here"}).read(len(BODY)) == BODY
        end = time.monotonic() + 10
        while connection.is_quiet:
            assert time.monotonic() < end, "what the server sent and its end were not noticed within 10 s"


def test_an_answer_that_never_has_a_body_is_not_waited_for() -> None:
    status, _, body, whole = fetch(b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + b"\r\n")

    assert (status, body, whole) == (304, b"", True)


def test_an_empty_object_is_whole_at_once() -> None:
    assert fetch(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") == (200, {"content-length": "0"}, b"", True)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", http.client.RemoteDisconnected),
        (b"HTTP/1.1 200 OK\r\nCont", http.client.RemoteDisconnected),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", http.client.BadStatusLine),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, http.client.LineTooLong),
    ],
    ids=["nothing", "half a head", "another protocol", "an endless head"],
)
def test_what_is_no_answer_is_an_error(answer: bytes, error: type[Exception]) -> None:
    with answering(answer) as (connection, _), pytest.raises((error, ConnectionResetError)):
        connection.get("/", {"Host": "here"})


def test_a_request_is_what_was_asked_for_and_nothing_that_an_object_names_can_add_to_it() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (connection, asked):
        with pytest.raises(ValueError, match="a character that none may have"):
            connection.get("/bucket/key", {"Host": "here", "If-Match": '"a"\r\nX-Evil: 1'})
        connection.get("/bucket/key", {"Host": "here", "If-Match": '"a"'})
    assert asked == [b'GET /bucket/key HTTP/1.1\r\nHost: here\r\nIf-Match: "a"\r\nAccept-Encoding: identity\r\n\r\n']
