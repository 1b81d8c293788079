"""Text that comes from a pod, made safe to be printed on somebody's terminal: nothing is left in it that a terminal obeys."""

import re

_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Also what turns the direction of writing round, cannot be seen, or is no character."""


def printable(text: str) -> str:
    """Return `text` without escape sequences and control characters; line ends stay, and a tab becomes four spaces."""
    return _CONTROL_CHARACTER.sub("", _ESCAPE_SEQUENCE.sub("", text)).replace("\t", "    ")


def one_line(text: str) -> str:
    """Return `text` printable and in one line; never longer than it was, so that a limit of its length still holds."""
    return printable(text.replace("\n", " ").replace("\t", " "))
