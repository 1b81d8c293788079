"""The progress reporter, against a small HTTPS server that stands in for the Kubernetes API."""

import importlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.progress import PROGRESS_KEY, PROGRESS_MAX_BYTES, Checkpoint, Progress, Results, StagedFile, StagingProgress
from rewardfl_api.trainer_config import ProgressTarget
from rewardfl_trainer.progress import Reporter
from tests.cluster.pki import Authority

TARGET = ProgressTarget(namespace="team", config_map="job-progress")
PATH = "/api/v1/namespaces/team/configmaps/job-progress"


@dataclass
class ApiStandIn:
    """The ConfigMap, and what was asked of it."""

    service_account: Path
    data: dict[str, str] = field(default_factory=dict)
    patches: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    hangs: threading.Event = field(default_factory=threading.Event)

    @property
    def documents(self) -> list[Progress]:
        """The documents that were sent, each checked as the operator checks it."""
        return [Progress.model_validate_json(patch["data"][PROGRESS_KEY]) for patch in self.patches]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ca")


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    pair = authority.server("api", [IPv4Address("127.0.0.1")])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@pytest.fixture
def api(tmp_path: Path, authority: Authority, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiStandIn]:
    importlib.import_module("rewardfl_trainer.progress_config_map")  # slow, and no part of what the tests time
    stand_in = ApiStandIn(tmp_path)
    (tmp_path / "token").write_text("the-token")
    (tmp_path / "ca.crt").write_bytes(authority.root.certificate.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.headers.append({name.lower(): value for name, value in self.headers.items()})
            if stand_in.hangs.is_set():
                time.sleep(20)
            if stand_in.status == 200:
                stand_in.patches.append(body)
                stand_in.data.update(body["data"])
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            found = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "job-progress"}, "data": stand_in.data}
            body = json.dumps(found if self.path == PATH else {}).encode()
            self.send_response(stand_in.status if self.path == PATH else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The tests read `patches` instead."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield stand_in
    server.shutdown()
    server.server_close()
    thread.join()


def wait_for(condition: Callable[[], object], timeout_seconds: float = 30) -> None:
    end = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def test_the_document_is_patched_with_the_service_account_of_the_pod(api: ApiStandIn) -> None:
    with Reporter(TARGET, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Training", step=3, total_steps=10, metrics={"reward": 0.5}, eta_seconds=12.5, message="well")

    (document,) = api.documents
    assert (document.phase, document.step, document.total_steps, document.metrics.reward) == ("Training", 3, 10, 0.5)
    assert (document.eta_seconds, document.message) == (12.5, "well")
    assert abs((datetime.now(UTC) - document.time).total_seconds()) < 60
    assert api.patches[0].keys() == {"data"}
    assert api.patches[0]["data"].keys() == {PROGRESS_KEY}
    assert api.headers[0]["authorization"].lower() == "bearer the-token"


def test_updates_merge_and_momentary_fields_do_not_stay(api: ApiStandIn) -> None:
    with Reporter(TARGET, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Training", step=1, total_steps=10, message="first", eta_seconds=5)
        reporter.update(step=2, results=Results(lora="s3://b/lora.safetensors"))

    last = api.documents[-1]
    assert (last.phase, last.step, last.total_steps) == ("Training", 2, 10)
    assert last.results is not None
    assert last.results.lora == "s3://b/lora.safetensors"
    assert (last.message, last.eta_seconds) == ("", None)


def test_many_updates_are_few_patches_and_the_last_one_is_sent(api: ApiStandIn) -> None:
    with Reporter(TARGET, min_interval_seconds=60, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Training", step=0)
        wait_for(lambda: api.patches)
        for step in range(1, 200):
            reporter.update(step=step)
        assert len(api.patches) == 1

    assert [document.step for document in api.documents] == [0, 199]


def test_a_change_of_phase_is_sent_at_once(api: ApiStandIn) -> None:
    with Reporter(TARGET, min_interval_seconds=60, service_account_dir=api.service_account) as reporter:
        for count, phase in enumerate(("Preparing", "Training", "Saving"), start=1):
            reporter.update(phase=phase)  # type: ignore[arg-type]
            wait_for(lambda count=count: len(api.patches) == count)  # type: ignore[misc]

    assert [document.phase for document in api.documents] == ["Preparing", "Training", "Saving"]


def test_updates_within_the_interval_are_sent_when_it_has_passed(api: ApiStandIn) -> None:
    with Reporter(TARGET, min_interval_seconds=0.3, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Training", step=1)
        wait_for(lambda: api.patches)
        reporter.update(step=2)
        wait_for(lambda: len(api.patches) == 2)

    assert api.documents[1].step == 2


def test_a_later_container_keeps_the_counts_and_the_checkpoint_of_an_earlier_one_but_not_each_file(api: ApiStandIn) -> None:
    with Reporter(TARGET, service_account_dir=api.service_account) as staging:
        checkpoint = Checkpoint(step=7, uri="s3://b/checkpoints/7", time=datetime.now(UTC))
        file = StagedFile(name="vae.pth", state="done", bytes_done=5, bytes_total=5)
        counts = StagingProgress(bytes_done=5, bytes_total=5, files_done=1, files_total=1, files=[file])
        staging.update(phase="Staging", staging=counts, checkpoint=checkpoint, step=9)

    with Reporter(TARGET, service_account_dir=api.service_account) as training:
        training.update(phase="Preparing")

    last = api.documents[-1]
    assert last.staging == StagingProgress(bytes_done=5, bytes_total=5, files_done=1, files_total=1)
    assert last.checkpoint == checkpoint
    assert (last.phase, last.step) == ("Preparing", 0)


def test_nonsense_in_the_config_map_is_replaced(api: ApiStandIn) -> None:
    api.data[PROGRESS_KEY] = '{"phase": "Dancing"}'

    with Reporter(TARGET, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Preparing")

    assert api.documents[-1].phase == "Preparing"


def test_a_metric_that_is_not_finite_hides_no_other(api: ApiStandIn) -> None:
    with Reporter(TARGET, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Training", metrics={"reward": 0.5, "loss": float("nan"), "kl": None}, eta_seconds=float("inf"))

    metrics = api.documents[-1].metrics
    assert (metrics.reward, metrics.loss, metrics.kl) == (0.5, None, None)


def test_a_value_out_of_its_range_is_left_out_and_said_once(api: ApiStandIn, caplog: pytest.LogCaptureFixture) -> None:
    with Reporter(TARGET, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Training", step=1)
        for _ in range(3):
            reporter.update(step=-5)
        reporter.update(step=2)

    assert api.documents[-1].step == 2
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_a_failing_api_server_is_said_once_and_the_report_arrives_when_it_is_back(
    api: ApiStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    api.status = 500
    with Reporter(TARGET, min_interval_seconds=0.1, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Training", step=1)
        wait_for(lambda: "cannot be reported" in caplog.text)
        time.sleep(0.5)
        api.status = 200
        wait_for(lambda: api.patches)

    assert api.documents[-1].step == 1
    assert caplog.text.count("cannot be reported") == 1
    assert "the-token" not in caplog.text


def test_a_hanging_api_server_delays_neither_updates_nor_the_end(api: ApiStandIn) -> None:
    api.hangs.set()
    reporter = Reporter(TARGET, service_account_dir=api.service_account)
    reporter.update(phase="Training", step=1)
    wait_for(lambda: api.headers)

    began = time.monotonic()
    for step in range(100):
        reporter.update(step=step)
    assert time.monotonic() - began < 2
    reporter.close(timeout_seconds=0.5)
    assert time.monotonic() - began < 4


def test_a_long_document_stays_within_what_the_operator_reads(api: ApiStandIn) -> None:
    uri = "s3://b/" + "ü" * 4000
    with Reporter(TARGET, service_account_dir=api.service_account) as reporter:
        results = Results(lora=uri, report=uri, metrics=uri, samples=uri)
        reporter.update(phase="Saving", results=results, message="m" * 5000)

    assert len(api.patches[-1]["data"][PROGRESS_KEY].encode()) <= PROGRESS_MAX_BYTES
    assert api.documents[-1].phase == "Saving"


def test_a_secret_in_a_message_is_not_reported(api: ApiStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")

    with Reporter(TARGET, service_account_dir=api.service_account) as reporter:
        reporter.update(phase="Saving", message="failed with a-very-secret-key")

    assert "a-very-secret-key" not in str(api.patches)


def test_outside_a_cluster_and_without_a_target_nothing_is_sent(api: ApiStandIn, tmp_path: Path) -> None:
    for target, folder in ((None, api.service_account), (TARGET, tmp_path / "no-service-account")):
        with Reporter(target, service_account_dir=folder) as reporter:
            reporter.update(phase="Training", step=1)

    assert api.patches == []
    assert api.headers == []
