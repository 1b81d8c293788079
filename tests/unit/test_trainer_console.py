"""A terminal gets a bar, a log gets lines, other ranks get nothing."""

import contextlib
import fcntl
import io
import logging
import os
import struct
import termios

import pytest

from rewardfl_trainer.console import SHOWN, Console

VALUES = {**dict.fromkeys(SHOWN, 1.23456), "kl": float("nan"), "learning_rate": 1.0}


def open_terminal() -> tuple[int, int]:
    """Return both ends of a terminal of 24 lines and 120 columns."""
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    return reader, writer


def read_all(reader: int) -> str:
    """Return what a closed terminal was shown; it comes in pieces."""
    shown = b""
    with contextlib.suppress(OSError):  # that is how a terminal ends
        while piece := os.read(reader, 65536):
            shown += piece
    os.close(reader)
    return shown.decode()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("rewardfl_trainer"), "propagate", True)
    caplog.set_level(logging.INFO, "rewardfl_trainer")
    return caplog


def test_a_log_gets_one_line_a_logged_step(lines: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    with Console(4, 2, is_main=True, stream=stream) as console:
        console.step(3, VALUES, logged=True)
        console.step(4, VALUES, logged=False)
    assert lines.messages == ["step 3/4 reward 1.235 loss 1.235 grad_norm 1.235 seconds_per_step 1.235 peak_memory_gb 1.235"]
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_begins_where_the_run_goes_on(lines: pytest.LogCaptureFixture) -> None:
    reader, writer = open_terminal()
    with os.fdopen(writer, "w") as terminal, Console(4, 2, is_main=True, stream=terminal) as console:
        console.step(3, VALUES, logged=True)
        console.step(4, VALUES, logged=True)
    shown = read_all(reader)
    assert "2/4" in shown
    assert "4/4" in shown
    assert "reward=1.235" in shown
    assert lines.messages == []


def test_other_ranks_show_nothing() -> None:
    reader, writer = open_terminal()
    with os.fdopen(writer, "w") as terminal:
        with Console(2, 0, is_main=False, stream=terminal) as console:
            console.step(1, VALUES, logged=False)
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    os.close(reader)
