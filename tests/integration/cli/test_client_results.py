"""What the Python client reads of a job's output in a real S3 server: metrics, files, the report; also what is hostile in it."""

import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewardfl_api import Client, Job, RewardFLError
from rewardfl_api.client.errors import NotFoundError
from rewardfl_api.client.halt import Halt, HaltedError
from rewardfl_api.errors import ExitCode, Reason
from tests.cluster import SeaweedFS
from tests.integration.cli.commands import pods, rewardfl, status
from tests.integration.cli.played_logs import Logs
from tests.integration.fault_proxy import Exchange, fault_proxy
from tests.integration.operator_harness import Installation, Kubelet, manifest

pytestmark = pytest.mark.slow

BUCKET = "results"
FILES = {
    "checkpoints/step-10/lora.safetensors": b"ten" * 1000,
    "checkpoints/step-20/lora.safetensors": b"twenty" * 1000,
    "lora.safetensors": b"last" * 1000,
    "metrics.jsonl": b'{"step": 2, "reward": 0.2, "held_out_reward": 0.3}\n{"step": 1, "reward": null}\nbroken\n{"step": 3, "rew',
    "report.html": b"<!DOCTYPE html><title>stored</title>",
    "samples/before/row-1 ü.mp4": b"video",
}


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedFS]:
    with SeaweedFS.start("127.0.0.1") as running:
        client = running.client()
        client.create_bucket(Bucket=BUCKET)
        for name, body in FILES.items():
            client.put_object(Bucket=BUCKET, Key=f"stored/{name}", Body=body)
        yield running


@pytest.fixture(autouse=True)
def credentials(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("REWARDFL_STORAGE_ATTEMPTS", "1")


@pytest.fixture(scope="module")
def client(server: SeaweedFS, editor: str) -> Client:
    return Client(kubeconfig=editor, endpoint=server.endpoint)


@pytest.fixture(scope="module")
def job(installation: Installation, client: Client) -> Job:
    client.submit(manifest("stored"))
    status(installation, "stored", phase="Succeeded", results={"report": "s3://elsewhere/evil.html"})
    return client.get("stored")


def test_the_stored_metrics_are_read_step_by_step_and_damaged_lines_left_out(client: Client, job: Job) -> None:
    steps = list(client.metrics(job))
    assert [(step.step, step.reward, step.held_out_reward) for step in steps] == [(1, None, None), (2, 0.2, 0.3)]


def test_steps_that_are_not_stored_yet_come_from_the_log(installation: Installation, client: Client, logs: Logs) -> None:
    job = client.submit(manifest("going-on", nodes=1, output=f"s3://{BUCKET}/stored/"))
    (pod,) = pods(installation, "going-on", nodes=1)
    Kubelet(installation, "going-on").train(pod)
    said = [f"2026-01-01 12:00:00,000 rank 0 INFO rewardfl_trainer.train: step {step}/4 reward 0.7" for step in (1, 2, 3)]
    logs[pod["metadata"]["name"], "trainer"].write(*said)
    assert [(step.step, step.reward) for step in client.metrics(job)] == [(1, None), (2, 0.2), (3, 0.7)]


def test_a_job_that_has_stored_nothing_yet_has_no_metrics_and_no_report(client: Client) -> None:
    young = client.submit(manifest("young"))
    assert list(client.metrics(young)) == []
    assert client.files(young) == []
    with pytest.raises(NotFoundError, match="young has no report yet in s3://results/young; it is made at the first checkpoint"):
        client.report(young, open_browser=False)
    with pytest.raises(NotFoundError, match="young has stored nothing in s3://results/young"):
        client.download(young, "nowhere")


def test_everything_is_downloaded_and_what_is_there_already_is_not_fetched_again(
    client: Client, job: Job, server: SeaweedFS, tmp_path: Path
) -> None:
    assert [(file.name, file.bytes) for file in client.files(job)] == [(name, len(body)) for name, body in sorted(FILES.items())]
    with fault_proxy(server.endpoint) as proxy:
        behind = Client(endpoint=proxy.endpoint)
        told: list[Path] = []
        fetched = behind.download(job, tmp_path / "all", progress=told.append)
        assert told == fetched
        assert {path.relative_to(tmp_path / "all").as_posix(): path.read_bytes() for path in fetched} == FILES
        count = len(proxy.contents())
        (tmp_path / "all" / "lora.safetensors").unlink()
        (tmp_path / "all" / "metrics.jsonl").write_bytes(b"x" * len(FILES["metrics.jsonl"]))
        assert behind.download(job, tmp_path / "all") == fetched
        assert {exchange.key for exchange in proxy.contents()[count:]} == {"stored/lora.safetensors", "stored/metrics.jsonl"}


def test_the_command_fetches_what_is_named_and_names_it(client: Client, job: Job, server: SeaweedFS, tmp_path: Path) -> None:
    to = tmp_path / "here"
    answer = rewardfl("download", "stored", "samples", "lora.*", "--to", str(to), "--endpoint", server.endpoint)
    assert (answer.exit_code, answer.stdout.splitlines()) == (0, [f"{to}/lora.safetensors", f"{to}/samples/before/row-1 ü.mp4"])
    assert answer.stderr == f"2 files, 4.0 kB, in {to}\n"
    wrong = rewardfl("download", "stored", "*.pth", "--to", str(to), "--endpoint", server.endpoint)
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (ExitCode.MISSING_INPUT, 1)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("lora.safetensors", ["lora.safetensors"]),
        (["checkpoints"], ["checkpoints/step-10/lora.safetensors", "checkpoints/step-20/lora.safetensors"]),
        (["*/step-2*", "report.html"], ["checkpoints/step-20/lora.safetensors", "report.html"]),
    ],
)
def test_only_what_a_pattern_means_is_downloaded(
    client: Client, job: Job, tmp_path: Path, patterns: list[str] | str, expected: list[str]
) -> None:
    fetched = client.download(job, tmp_path, patterns=patterns)
    assert [path.relative_to(tmp_path).as_posix() for path in fetched] == expected
    with pytest.raises(NotFoundError, match=r"nothing that is called \*\.pth or x in .*; it has 6 files"):
        client.download(job, tmp_path, patterns=["*.pth", "x"])


def test_a_key_that_a_terminal_would_obey_is_shown_without_that(server: SeaweedFS, client: Client, tmp_path: Path) -> None:
    client.submit(manifest("loud"))
    server.client().put_object(Bucket=BUCKET, Key="loud/a\x1b[2Jb", Body=b"content")
    answer = rewardfl("download", "loud", "--to", str(tmp_path), "--endpoint", server.endpoint)
    assert (answer.exit_code, answer.stdout) == (0, f"{tmp_path}/ab\n")
    assert (tmp_path / "a\x1b[2Jb").read_bytes() == b"content"


@pytest.mark.parametrize("evil", ["../../outside", "a/../../../outside", "{tmp}/outside", "nul%00outside"])
def test_a_key_that_leads_out_of_the_folder_is_left_out(
    client: Client, job: Job, server: SeaweedFS, tmp_path: Path, evil: str
) -> None:
    key = evil.format(tmp=tmp_path)

    def rename(exchange: Exchange) -> None:
        exchange.body = exchange.body.replace(b"stored/lora.safetensors", f"stored/{key}".encode())

    with fault_proxy(server.endpoint) as proxy:
        proxy.after.append(rename)
        fetched = Client(endpoint=proxy.endpoint).download(job, tmp_path / "a" / "b" / "to")
    assert len(fetched) == len(FILES) - 1
    assert not list(tmp_path.rglob("*outside*"))


def test_a_link_that_leads_out_of_the_folder_is_refused(client: Client, job: Job, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "samples").symlink_to(tmp_path / "outside")
    with pytest.raises(RewardFLError, match="a link on the way to it leads out of") as caught:
        client.download(job, tmp_path / "to")
    assert caught.value.reason is Reason.UNSAFE_PATH
    assert not list((tmp_path / "outside").rglob("*.mp4"))


def test_a_file_whose_transfer_breaks_off_is_not_there(client: Client, job: Job, server: SeaweedFS, tmp_path: Path) -> None:
    def cut(exchange: Exchange) -> None:
        exchange.cut_after = 100 if exchange.is_content and exchange.key.endswith("step-20/lora.safetensors") else None

    with fault_proxy(server.endpoint) as proxy:
        proxy.after.append(cut)
        with pytest.raises(RewardFLError, match=r"checkpoints/step-20/lora\.safetensors"):
            Client(endpoint=proxy.endpoint).download(job, tmp_path, patterns="checkpoints")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "checkpoints/step-10/lora.safetensors"
    ]
    client.download(job, tmp_path, patterns="checkpoints")
    assert (tmp_path / "checkpoints/step-20/lora.safetensors").read_bytes() == FILES["checkpoints/step-20/lora.safetensors"]


@pytest.mark.parametrize(
    "fetch",
    [
        lambda client, job, to: client.download(job, to, patterns="lora.safetensors"),
        lambda client, job, to: list(client.metrics(job)),
        lambda client, job, to: client.report(job, to=to / "report.html", open_browser=False),
    ],
    ids=["download", "metrics", "report"],
)
def test_what_is_cancelled_within_a_file_ends_within_it(
    client: Client, job: Job, server: SeaweedFS, tmp_path: Path, fetch: Callable[[Client, Job, Path], object]
) -> None:
    halt = Halt()
    with fault_proxy(server.endpoint) as proxy:
        proxy.after.append(lambda exchange: halt.now() if exchange.is_content else None)
        with pytest.raises(HaltedError):
            fetch(Client(endpoint=proxy.endpoint).with_halt(halt), job, tmp_path)
        assert proxy.contents()
    assert list(tmp_path.iterdir()) == []


def test_names_that_no_folder_can_hold_are_left_out_and_the_others_fetched(
    client: Client, server: SeaweedFS, tmp_path: Path
) -> None:
    client.submit(manifest("crowded"))
    kept = ["a/b", "z"]
    there = ["a", "a/b", "c//d", "./e", f"{'x' * 256}/f", "ü" * 124, "z"]

    def crowded(exchange: Exchange) -> None:
        if "list-type=2" in exchange.path:
            contents = [
                f"<Contents><Key>crowded/{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>"
                for name in there
            ]
            exchange.body = f"<ListBucketResult>{''.join(contents)}</ListBucketResult>".encode()

    for name in kept:
        server.client().put_object(Bucket=BUCKET, Key=f"crowded/{name}", Body=b"x")
    with fault_proxy(server.endpoint) as proxy:
        proxy.after.append(crowded)
        fetched = Client(endpoint=proxy.endpoint).download("crowded", tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in fetched] == kept


def test_the_report_is_that_of_the_output_whatever_the_status_names_and_is_opened(
    client: Client, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    page = client.report(job)
    assert (page.read_bytes(), opened) == (FILES["report.html"], [page.as_uri()])
    assert client.report(job, to=tmp_path / "page.html", open_browser=False) == tmp_path / "page.html"
    assert len(opened) == 1


def test_wrong_credentials_are_an_error_that_shows_no_secret(
    client: Client, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-4711")
    with pytest.raises(RewardFLError, match=r"spec\.output=s3://results/stored") as caught:
        client.download(job, tmp_path)
    assert caught.value.reason is Reason.STORAGE_ACCESS_DENIED
    assert "wrong-secret-4711" not in str(caught.value)
