"""What is shown of a log's end: whole lines, no secrets, no control characters, and room for the message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewardfl_api.errors import LOG_TAIL_MAX_CHARACTERS, Reason, TerminationMessage
from rewardfl_trainer import memory_limit
from rewardfl_trainer.failures import TERMINATION_LOG_MAX_BYTES, TERMINATION_LOG_VARIABLE, leave_message
from rewardfl_trainer.log_tail import KEPT_BYTES, TAIL_LINES, Tail, presentable


def tail_of(*chunks: str) -> str:
    tail = Tail()
    for chunk in chunks:
        tail.add(chunk.encode())
    return tail.text()


def test_the_last_lines_are_kept_whole() -> None:
    text = tail_of(*(f"line {number}\n" for number in range(100)))

    assert text.splitlines() == [f"line {number}" for number in range(100 - TAIL_LINES, 100)]


def test_long_lines_are_left_out_before_one_is_cut() -> None:
    assert tail_of("a" * 1500 + "\n", "b" * 1500 + "\n") == "b" * 1500
    assert tail_of("c" * 5000) == "c" * LOG_TAIL_MAX_CHARACTERS


@pytest.mark.parametrize("offset", range(-4, 5))
def test_a_secret_at_the_edge_of_what_is_kept_is_never_shown_in_part(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr3t-0123456789"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    filler = "\x00" * (KEPT_BYTES - len(secret) + offset)  # taken out, so what stands before it would be among what is shown

    text = tail_of(*secret, *([filler[i : i + 4096] for i in range(0, len(filler), 4096)]), "\nlast\n")

    assert text.endswith("last")
    assert secret[-4:] not in text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07plain", "red plain"),
        ("  0%|   | 0/4\r 50%|## | 2/4\r100%|####| 4/4\ndone", "100%|####| 4/4\ndone"),
        ("a\r\nb\r\n", "a\nb"),
        ("bell\x07 null\x00 back\x08space c1\x9b31m", "bell null backspace c131m"),
        ("right\u202eto left", "rightto left"),
        ("tab\tand\n\n\nempty lines", "tab    and\nempty lines"),
        ("schöne 行 😀", "schöne 行 😀"),
    ],
)
def test_nothing_is_shown_that_a_terminal_would_obey(written: str, shown: str) -> None:
    assert presentable(written) == shown


@pytest.mark.parametrize(
    "line",
    [
        "https://s3/b/k?AWSAccessKeyId=AKIDEXAMPLE&Signature=abc%2Bdef%3D&Expires=1",
        "https://storage/b/k?X-Goog-Signature=abc%2Bdef",
        "x-amz-security-token: abc+def//",
        "Authorization: AWS4-HMAC-SHA256 Credential=AKID/2026/s3, SignedHeaders=host, Signature=abc+def",
        "headers {'authorization': 'Bearer abc+def.ghi'}",
        "token sent as Bearer abc+def.ghi",
        "aws_secret_access_key = abc+def",
        '{"password": "abc+def", "user": "me"}',
        "jwt eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrOHMifQabc.c2lnbmF0dXJlabc+def",
        "-----BEGIN RSA PRIVATE KEY-----\nabc+def\n-----END RSA PRIVATE KEY-----",
        "percent-encoded abc%2Bdef-of-the-environment",
    ],
)
def test_secrets_are_masked_in_every_usual_shape(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "abc+def-of-the-environment")

    shown = presentable(line)

    assert "***" in shown
    assert "abc" not in shown.replace("Qabc", "")


def test_stage_reports_the_end_of_its_log_and_still_writes_it(tmp_path: Path) -> None:
    environment = {**os.environ, TERMINATION_LOG_VARIABLE: str(tmp_path / "log")}

    command = [sys.executable, "-m", "rewardfl_trainer.staging", "--config", "/no/such/config.yaml"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    left = TerminationMessage.parse((tmp_path / "log").read_text())
    assert left is not None
    assert (ended.returncode, left.exit_code) == (66, 66)
    assert f"ERROR rewardfl_trainer.failures: {left.reason}: --config=/no/such" in left.log_tail.splitlines()[-1]
    assert left.log_tail.splitlines()[-1] in ended.stderr


def test_the_log_makes_room_for_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMINATION_LOG_VARIABLE, str(tmp_path / "log"))
    lines = "\n".join(f"{number:02d} " + '"行"' * 25 for number in range(20))
    message = TerminationMessage(
        reason=Reason.BAD_DATASET, message="m" * 1500, hint="h" * 1000, exit_code=65, log_tail=lines[:LOG_TAIL_MAX_CHARACTERS]
    )

    leave_message(message)

    raw = (tmp_path / "log").read_bytes()
    left = TerminationMessage.parse(raw.decode())
    assert left is not None
    assert len(raw) <= TERMINATION_LOG_MAX_BYTES
    assert (left.message, left.hint) == (message.message, message.hint)
    assert message.log_tail.endswith(left.log_tail)
    assert left.log_tail.split("\n")[0][:2].isdigit(), "lines stay whole"


def test_a_message_that_the_kubelet_has_cut_loses_its_log_and_nothing_else(tmp_path: Path) -> None:
    whole = TerminationMessage(reason=Reason.IO_FAILED, message="m", hint="h", exit_code=74, rank=3, time=5.0, log_tail="l" * 500)
    text = json.dumps(whole.to_kubernetes())

    assert TerminationMessage.parse(text[:300]) == whole.copy_with(log_tail="")
    assert TerminationMessage.parse(text) == whole


def test_a_newer_images_message_is_read() -> None:
    text = '{"reason": "IoFailed", "message": "m", "exitCode": 74, "somethingNew": 1}'

    parsed = TerminationMessage.parse(text)

    assert parsed is not None
    assert parsed.exit_code == 74


@pytest.mark.parametrize(
    ("text", "count"), [("low 0\noom 3\noom_kill 2\noom_group_kill 0\n", 2), ("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1)]
)
def test_both_kinds_of_control_group_say_what_the_memory_limit_has_killed(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "events").write_text(text)

    assert memory_limit.kills((tmp_path / "missing", tmp_path / "events")) == count
    assert memory_limit.kills((tmp_path / "missing",)) == 0
