"""Watching a job: line by line, at a terminal, and over connections that are cut, stall or fail."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rewardfl_api.client import jobs as client_jobs
from rewardfl_api.client.connection import Connection
from rewardfl_api.client.errors import DeletedError, UnreachableError
from rewardfl_api.errors import ExitCode
from tests.integration.api_proxy import ApiProxy, Fault, api_proxy
from tests.integration.cli.commands import FAILED, PATIENCE_SECONDS, at_a_terminal, next_line, rewardfl, running, status, submit
from tests.integration.operator_harness import Installation, manifest, now

pytestmark = pytest.mark.slow


def test_a_watch_prints_a_line_a_change_and_ends_with_the_job(installation: Installation) -> None:
    submit("watched")
    with running("watch", "watched") as process:
        assert next_line(process) == "new"
        status(installation, "watched", phase="Training", progress="1/4", percent=25, metrics={"reward": 0.25})
        assert next_line(process) == "Training  step 1/4 (25%)  reward 0.25"
        status(installation, "watched", lastProgressTime=now())
        status(installation, "watched", progress="2/4", percent=50, eta="5s")
        assert next_line(process) == "Training  step 2/4 (50%)  reward 0.25  eta 5s"
        status(installation, "watched", phase="Succeeded", results={"lora": "s3://b/lora.safetensors"}, eta=None)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert output.splitlines()[-1].startswith("watched succeeded after ")
        assert output.splitlines()[-1].endswith(": s3://b/lora.safetensors")
        assert (process.returncode, errors) == (0, "")


def test_submitting_and_waiting_ends_with_1_when_the_job_fails(installation: Installation, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(manifest("failing")), encoding="utf-8")
    with running("submit", "-f", str(file), "--wait") as process:
        assert "created" in next_line(process)
        next_line(process)
        status(installation, "failing", phase="Failed", conditions=[FAILED])
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == ExitCode.FAILED
        assert errors == (
            "rewardfl submit: failing failed: OutOfMemory: rank 1 needed more memory; see rewardfl describe failing -n default\n"
        )


def test_ctrl_c_ends_a_watch_with_130_and_leaves_the_job_alone(installation: Installation) -> None:
    submit("interrupted")
    with running("watch", "interrupted") as process:
        next_line(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 130
        assert "Traceback" not in errors
    assert installation.get("rewardfljob", "interrupted")["spec"]["runPolicy"]["suspend"] is False


def test_a_watch_at_a_terminal_draws_bars_and_metrics(installation: Installation) -> None:
    submit("drawn")
    status(installation, "drawn", phase="Training", progress="1/4", step=1, percent=25, metrics={"reward": 0.1, "loss": 2.0})
    shown, code = at_a_terminal(
        ["watch", "drawn"],
        [
            (b"25%", lambda: status(installation, "drawn", progress="2/4", step=2, percent=50, metrics={"reward": 0.9})),
            ("▁█".encode(), lambda: status(installation, "drawn", phase="Succeeded", percent=100)),
        ],
    )
    text = shown.decode()
    assert code == 0
    assert "━" in text
    assert "loss 2" in text
    assert "drawn succeeded" in text


@pytest.fixture
def proxied(editor: str, tmp_path: Path) -> Iterator[tuple[ApiProxy, client_jobs.Jobs]]:
    with api_proxy(editor) as proxy:
        yield proxy, client_jobs.Jobs(Connection.open(proxy.kubeconfig(editor, tmp_path / "proxied")))


def test_a_watch_that_is_cut_again_and_again_misses_nothing(
    installation: Installation, proxied: tuple[ApiProxy, client_jobs.Jobs]
) -> None:
    proxy, jobs = proxied
    submit("cut")
    proxy.rules.append(lambda call: Fault(cut_after=700) if call.is_watch else None)
    seen: list[str] = []
    for job in jobs.watch("cut"):
        seen.append(job.status.progress or "")
        if len(seen) == 4:
            break
        status(installation, "cut", phase="Training", progress=f"{len(seen)}/9")
    assert seen == ["", "1/9", "2/9", "3/9"]
    assert proxy.faults >= 2


def test_a_watch_outlives_an_api_server_that_answers_with_errors_for_a_while(
    installation: Installation, proxied: tuple[ApiProxy, client_jobs.Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, jobs = proxied
    monkeypatch.setattr(client_jobs, "BACK_OFF_SECONDS", (0.1,))
    submit("shaken")
    watch = jobs.watch("shaken")
    assert next(watch).phase == ""
    faults = iter([Fault(status=500), Fault(refuse=True), Fault(status=429), Fault(status=503)])
    proxy.rules.append(lambda call: next(faults, None))
    status(installation, "shaken", phase="Training")
    assert next(watch).phase == "Training"
    assert proxy.faults == 4


def test_a_watch_that_stalls_without_a_word_is_begun_anew(
    installation: Installation, proxied: tuple[ApiProxy, client_jobs.Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, jobs = proxied
    monkeypatch.setattr(client_jobs, "WATCH_SECONDS", 1)
    monkeypatch.setattr(client_jobs, "WATCH_MARGIN_SECONDS", 0.5)
    submit("stalled")
    proxy.frozen = lambda call: True
    watch = jobs.watch("stalled")
    next(watch)
    threading.Timer(0.5, status, [installation, "stalled"], {"phase": "Training"}).start()
    began = time.monotonic()
    assert next(watch).phase == "Training"
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_a_watch_gives_up_when_the_api_server_stays_away(
    proxied: tuple[ApiProxy, client_jobs.Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, jobs = proxied
    monkeypatch.setattr(client_jobs, "PATIENCE_SECONDS", 1.0)
    submit("gone")
    watch = jobs.watch("gone")
    next(watch)
    proxy.rules.append(lambda call: Fault(refuse=True))
    with pytest.raises(UnreachableError, match="cannot be reached"):
        next(watch)


def test_a_watched_job_that_is_deleted_or_replaced_ends_the_watch(installation: Installation, editor: str) -> None:
    submit("fleeting")
    watch = client_jobs.Jobs(Connection.open(editor)).watch("fleeting")
    next(watch)
    rewardfl("delete", "fleeting", "--yes")
    with pytest.raises(DeletedError, match="default/fleeting was deleted"):
        next(watch)
    submit("fleeting")
    watch = client_jobs.Jobs(Connection.open(editor)).watch("fleeting")
    next(watch)
    rewardfl("delete", "fleeting", "--yes")
    submit("fleeting")
    with pytest.raises(DeletedError):
        next(watch)
