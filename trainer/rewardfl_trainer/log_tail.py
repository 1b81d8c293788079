"""The end of a log, fit to be shown in a status: whole lines, without secrets and without control characters.

It keeps the last bytes and decides nothing about when they are shown. It must not import torch: `stage` uses it too.
"""

import logging
from collections import deque

from rewardfl_api.errors import LOG_TAIL_MAX_CHARACTERS
from rewardfl_api.printable import printable
from rewardfl_trainer.redact import redact

TAIL_LINES = 20
KEPT_BYTES = 65_536
"""More than is shown: a secret that was cut in two would not be known as one, so cutting comes last."""


class Tail:
    """The last bytes of a stream."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._is_cut = False

    def add(self, chunk: bytes) -> None:
        """Take in what was written."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= KEPT_BYTES:
            self._size -= len(self._chunks.popleft())
            self._is_cut = True

    def text(self) -> str:
        """Return the last lines as they may be shown."""
        raw = b"".join(self._chunks)
        if self._is_cut:
            raw = raw.partition(b"\n")[2]
        return presentable(raw.decode("utf-8", errors="replace"))


class TailHandler(logging.Handler):
    """Keeps the end of this process's own log, for a program that nobody watches from outside."""

    def __init__(self) -> None:
        super().__init__()
        self._tail = Tail()

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a record."""
        self._tail.add(f"{self.format(record)}\n".encode(errors="replace"))

    def text(self) -> str:
        """Return the last lines as they may be shown."""
        return self._tail.text()


def presentable(text: str) -> str:
    """Return the last lines of `text`, secrets masked, control characters and terminal escape sequences taken out.

    Of a line that was overwritten in place (a progress bar) the last state is left.
    """
    text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    text = redact(printable(text))
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    return shorten("\n".join(lines[-TAIL_LINES:]), LOG_TAIL_MAX_CHARACTERS)


def shorten(text: str, characters: int) -> str:
    """Return the last whole lines of `text` that have room in so many characters; of a longer last line its end."""
    if len(text) <= characters:
        return text
    cut = text[len(text) - characters :] if characters > 0 else ""
    whole = cut.partition("\n")[2]
    return whole or cut
