"""How programs of the trainer image end: exit code, termination message, log."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from rewardfl_api.errors import MESSAGE_MAX_CHARACTERS, ExitCode, Reason, RewardFLError, TerminationMessage
from rewardfl_trainer import configuration
from rewardfl_trainer.failures import TERMINATION_LOG_MAX_BYTES, TERMINATION_LOG_VARIABLE, Terminated, leave_message, run_main
from rewardfl_trainer.redact import redact


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv(TERMINATION_LOG_VARIABLE, str(path))
    return path


def left(log: Path) -> TerminationMessage:
    message = TerminationMessage.parse(log.read_text(encoding="utf-8"))
    assert message is not None
    return message


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_a_program_that_ends_well_leaves_no_message(log: Path) -> None:
    assert run_main(lambda: None) == 0
    assert log.read_text() == ""


def test_an_error_for_the_user_becomes_message_hint_and_exit_code(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    error = RewardFLError(Reason.BUCKET_NOT_FOUND, "dataset=s3://nope/: missing", "Create it.", ExitCode.MISSING_INPUT)

    assert run_main(raising(error)) == 66

    message = left(log)
    assert (message.reason, message.exit_code, message.rank) == (Reason.BUCKET_NOT_FOUND, 66, 3)
    assert (message.message, message.hint) == ("dataset=s3://nope/: missing", "Create it.")
    assert message.time > 1e9


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (KeyError("x"), Reason.TRAINER_FAILED, 1),
        (MemoryError(), Reason.OUT_OF_MEMORY, 1),
        (RuntimeError("CUDA error: out of memory"), Reason.OUT_OF_MEMORY, 1),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Reason.OUT_OF_MEMORY, 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), Reason.OUT_OF_MEMORY, 1),
        (OSError(errno.ENOSPC, "No space left on device", "/c/x"), Reason.DISK_TOO_SMALL, 74),
        (OSError(errno.EROFS, "Read-only file system", "/c/x"), Reason.IO_FAILED, 74),
        (PermissionError(errno.EACCES, "Permission denied", "/c/x"), Reason.IO_FAILED, 74),
        (Terminated(), Reason.TERMINATED, 143),
        (KeyboardInterrupt(), Reason.TERMINATED, 143),
        (SystemExit(2), Reason.BAD_USAGE, 64),
        (SystemExit("refused"), Reason.TRAINER_FAILED, 1),
    ],
)
def test_each_kind_of_failure_has_its_reason_and_exit_code(log: Path, error: BaseException, reason: Reason, code: int) -> None:
    assert run_main(raising(error)) == code

    assert (left(log).reason, left(log).exit_code) == (reason, code)
    if reason in (Reason.OUT_OF_MEMORY, Reason.DISK_TOO_SMALL, Reason.IO_FAILED):
        assert left(log).hint


def test_an_out_of_memory_error_of_torch_is_recognised(log: Path) -> None:
    import torch

    assert run_main(raising(torch.OutOfMemoryError("tried to allocate 20 GiB"))) == 1
    assert left(log).reason is Reason.OUT_OF_MEMORY


def test_the_first_failure_of_the_ranks_stays_and_gives_the_exit_code(log: Path) -> None:
    first = RewardFLError(Reason.NO_FACE_IN_FIRST_FRAME, "row 3", exit_code=ExitCode.BAD_DATA)
    assert run_main(raising(first)) == 65

    # torchrun stops the others, and exits with 1 itself
    assert run_main(raising(Terminated())) == 65
    assert run_main(raising(RuntimeError("ChildFailedError"))) == 65

    assert left(log).reason is Reason.NO_FACE_IN_FIRST_FRAME


def test_an_earlier_failure_replaces_a_later_one_that_was_quicker_to_write(log: Path) -> None:
    def at(time: float) -> TerminationMessage:
        return TerminationMessage(reason=Reason.IO_FAILED, message=f"at {time}", exit_code=74, time=time)

    assert leave_message(at(20.0)).time == 20.0
    assert leave_message(at(10.0)).time == 10.0
    assert leave_message(at(15.0)).time == 10.0
    assert left(log).message == "at 10.0"


def test_what_is_no_message_in_the_log_is_replaced(log: Path) -> None:
    log.write_text("something that another program printed")

    run_main(raising(KeyError("x")))

    assert left(log).reason is Reason.TRAINER_FAILED


def test_a_missing_termination_log_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TERMINATION_LOG_VARIABLE, str(tmp_path / "no/such/folder/log"))

    assert run_main(raising(RewardFLError(Reason.BAD_DATASET, "bad", exit_code=ExitCode.BAD_DATA))) == 65


def test_a_long_message_in_any_script_fits_what_the_kubelet_keeps(log: Path) -> None:
    run_main(raising(RewardFLError(Reason.BAD_DATASET, "行" * MESSAGE_MAX_CHARACTERS, "😀" * MESSAGE_MAX_CHARACTERS)))

    assert len(log.read_bytes()) <= TERMINATION_LOG_MAX_BYTES
    assert left(log).message.startswith("行")


def test_secrets_are_taken_out_of_messages_and_tracebacks(
    log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
        "AWS_ACCESS_KEY_ID": "an-access-key-id",
        "HF_TOKEN": "a-token-of-the-hub",
        "MY_PASSWORD": "hunter2hunter2",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    others = ["AKIAIOSFODNN7EXAMPLE", "https://user:pa55word@host/", "X-Amz-Signature=0123abcd", "Authorization: Bearer abc.def"]

    run_main(raising(ValueError(" ".join([*secrets.values(), *others]))))

    for text in (log.read_text(), caplog.text):
        assert "ValueError" in text
        for secret in (*secrets.values(), "AKIAIOSFODNN7EXAMPLE", "pa55word", "0123abcd", "abc.def"):
            assert secret not in text


def test_ordinary_text_is_not_garbled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-is-a-word")
    text = "s3://bucket/key: /var/run/secrets/token false-is-a-word at http://host:9000/ 12:30:00"

    assert redact(text) == text


def test_sigterm_ends_a_program_with_143(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from rewardfl_trainer.failures import run_main

        def main():
            print("up", flush=True)
            time.sleep(60)

        sys.exit(run_main(main))
    """)
    environment = {**os.environ, TERMINATION_LOG_VARIABLE: str(tmp_path / "log")}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=20) == 143
    assert left(tmp_path / "log").reason is Reason.TERMINATED


def test_the_message_is_what_the_operator_reads(log: Path) -> None:
    run_main(raising(RewardFLError(Reason.DIVERGED, "loss is NaN", "Lower the learning rate.")))

    assert set(json.loads(log.read_text())) >= {"reason", "message", "hint", "exitCode", "time"}


@pytest.mark.parametrize(
    ("training", "rest", "expected"),
    [
        ("num_frames: 80", "dataset: /d", "training.num_frames=80: must be 4k+1 (77 or 81)"),
        ("seed: -3", "dataset: /d", "training.seed=-3: Input should be greater"),
        ("seeed: 3", "dataset: /d", "training.seeed=3: Extra inputs"),
        ("mid_timestep: 9", "dataset: /d", "training.mid_timestep=9: must not be after final_timestep=7"),
        ("seed: 1", "dataset: /d\nstorage: {endpoint: 'http://user:pa55word@host'}", "storage.endpoint=http://***@host: "),
        ("seed: 1", "", "dataset: Field required"),
        ("seed: 1", "dataset: [", "not a YAML mapping"),
    ],
)
def test_a_bad_configuration_file_is_described_one_line_a_field(
    log: Path, tmp_path: Path, training: str, rest: str, expected: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"output: /o\ntraining: {{model_paths: [/m], reward_model_path: /r, trainable_models: dit, {training}}}\n{rest}"
    )

    assert run_main(lambda: print(configuration.load(file))) == 78

    assert left(log).reason is Reason.BAD_CONFIGURATION
    assert expected in left(log).message
    assert "pa55word" not in left(log).message


def test_a_configuration_file_that_is_not_there_is_named(log: Path) -> None:
    assert run_main(lambda: print(configuration.load("/no/such/config.yaml"))) == 66

    assert "--config=/no/such/config.yaml" in left(log).message
