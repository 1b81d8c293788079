"""The Python client against a real API server: what it submits, what it waits for, and what ends the waiting."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest
import yaml

from rewardfl_api import AsyncClient, Client, InvalidJobError, Job, JobFailedError, ObjectMeta, RewardFLJob
from rewardfl_api.client import connection
from rewardfl_api.client import jobs as client_jobs
from rewardfl_api.client.errors import DeletedError, ExistsError, RefusedError
from rewardfl_api.reasons import EXPLANATIONS
from tests.integration.api_proxy import ApiProxy, Call, Fault, api_proxy
from tests.integration.cli.commands import FAILED, PATIENCE_SECONDS, pods, status
from tests.integration.cli.played_logs import Logs
from tests.integration.operator_harness import Installation, Kubelet, manifest, until

pytestmark = pytest.mark.slow

SOON_SECONDS = 10.0
"""Well below the 45 seconds of a watch that nobody has ended."""


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def proxied(editor: str, tmp_path: Path) -> Iterator[tuple[ApiProxy, str]]:
    with api_proxy(editor) as proxy:
        yield proxy, proxy.kubeconfig(editor, tmp_path / "proxied")


def test_a_model_a_manifest_a_text_a_file_and_a_job_that_was_read_are_submitted_alike(client: Client, tmp_path: Path) -> None:
    body = manifest("as-manifest")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest("as-file")), encoding="utf-8")
    model = RewardFLJob(metadata=ObjectMeta(name="as-model"), spec=RewardFLJob.parse(body).spec)
    made = [
        client.submit(model),
        client.submit(body),
        client.submit(yaml.safe_dump(manifest("as-text"))),
        client.submit(tmp_path / "job.yaml"),
        client.submit(client.get("as-file"), name="as-job", output="s3://results/as-job/", suspend=True),
    ]
    assert [job.name for job in made] == ["as-model", "as-manifest", "as-text", "as-file", "as-job"]
    assert [job.is_suspended for job in made] == [False] * 4 + [True]
    specs = [{**job.raw["spec"], "output": "", "runPolicy": {}} for job in made]
    assert all(spec == specs[1] for spec in specs)
    assert {job.name for job in client.list()} >= {job.name for job in made}


def test_what_is_wrong_with_a_job_is_told_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(InvalidJobError) as caught:
        client.submit(manifest("wrong", nodes=0, training={"numFrames": 80}))
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == ["spec.nodes", "spec.training.numFrames"]
    assert "spec.training.numFrames=80: must be 4k+1" in str(caught.value)
    assert "wrong" not in {job.name for job in client.list()}


def test_what_only_the_api_server_knows_is_told_by_it_and_a_dry_run_creates_nothing(client: Client) -> None:
    labelled = manifest("labelled-by-client")
    labelled["metadata"]["labels"] = {"team": "not a label!"}
    with pytest.raises(RefusedError, match="Invalid value"):
        client.submit(labelled)
    client.submit(manifest("dry-by-client"), dry_run=True)
    assert not {"labelled-by-client", "dry-by-client"} & {job.name for job in client.list()}
    client.submit(manifest("twice"))
    with pytest.raises(ExistsError, match="default/twice exists already"):
        client.submit(manifest("twice"))


def test_a_job_is_suspended_resumed_and_deleted(client: Client) -> None:
    job = client.submit(manifest("steered"))
    assert client.suspend(job).is_suspended
    assert not client.resume("steered").is_suspended
    client.delete(job)
    again = client.submit(manifest("steered"))
    with pytest.raises(DeletedError, match="another of that name was created"):
        client.suspend(job)
    assert not client.get(again).is_suspended


@pytest.mark.parametrize("steer", [Client.suspend, Client.resume, Client.delete])
def test_a_job_that_takes_the_name_just_before_the_write_is_left_alone(
    client: Client, proxied: tuple[ApiProxy, str], steer: Callable[[Client, Job], object]
) -> None:
    proxy, kubeconfig = proxied
    name = f"replaced-by-{steer.__name__}"
    job = client.submit(manifest(name))
    again: list[Job] = []

    def replaced(call: Call) -> Fault | None:
        if call.is_write and not again:
            client.delete(job)
            again.append(client.submit(manifest(name)))
        return None

    proxy.rules.append(replaced)
    with pytest.raises(DeletedError, match=f"default/{name} was deleted, and another of that name was created"):
        steer(Client(kubeconfig=kubeconfig), job)
    assert client.get(again[0]).raw["spec"] == again[0].raw["spec"]


def test_waiting_over_cut_watches_tells_every_change_and_returns_the_job_that_succeeded(
    installation: Installation, client: Client, proxied: tuple[ApiProxy, str]
) -> None:
    proxy, kubeconfig = proxied
    job = client.submit(manifest("waited"))
    proxy.rules.append(lambda call: Fault(cut_after=700) if call.is_watch else None)
    seen: list[str] = []

    def told(now: Job) -> None:
        seen.append(now.status.progress or "")
        if len(seen) < 4:
            status(installation, "waited", phase="Training", progress=f"{len(seen)}/4")
        elif len(seen) == 4:
            status(installation, "waited", phase="Succeeded", results={"lora": "s3://b/lora.safetensors"})

    ended = Client(kubeconfig=kubeconfig).wait(job, progress=told)
    assert seen == ["", "1/4", "2/4", "3/4", "3/4"]
    assert (ended.phase, ended.status.results and ended.status.results.lora) == ("Succeeded", "s3://b/lora.safetensors")
    assert proxy.faults >= 2


def test_a_watch_whose_version_has_expired_looks_anew(
    installation: Installation, client: Client, proxied: tuple[ApiProxy, str]
) -> None:
    proxy, kubeconfig = proxied
    client.submit(manifest("expired"))
    proxy.rules.append(lambda call: Fault(status=410) if call.is_watch else None)
    watch = Client(kubeconfig=kubeconfig).watch("expired")
    assert next(watch).phase == ""
    status(installation, "expired", phase="Training")
    assert next(watch).phase == "Training"
    status(installation, "expired", phase="Succeeded")
    assert [job.phase for job in watch] == ["Succeeded"]
    assert proxy.faults >= 1


def test_a_job_that_failed_raises_with_its_reason_and_what_to_do(installation: Installation, client: Client) -> None:
    job = client.submit(manifest("failed-for-client"))
    status(installation, "failed-for-client", phase="Failed", conditions=[FAILED])
    with pytest.raises(JobFailedError, match="failed-for-client failed: OutOfMemory: rank 1 needed more memory; ") as caught:
        client.wait(job)
    remedies = {reason.value: explanation.remedy for reason, explanation in EXPLANATIONS.items()}
    assert (caught.value.reason, caught.value.hint) == ("OutOfMemory", remedies["OutOfMemory"])
    assert caught.value.job.phase == "Failed"


def test_a_wait_ends_after_its_time_and_the_job_goes_on(installation: Installation, client: Client) -> None:
    job = client.submit(manifest("late"))
    status(installation, "late", phase="Training", progress="1/4")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"default/late has not ended within 0\.5 s: it is Training, step 1/4"):
        client.wait(job, timeout=0.5)
    assert time.monotonic() - began < SOON_SECONDS
    status(installation, "late", phase="Succeeded")
    assert client.wait(job, timeout=0).phase == "Succeeded"


def test_metrics_come_from_the_log_where_the_output_cannot_be_read_and_are_followed_to_the_end(
    installation: Installation, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDFL_STORAGE_ATTEMPTS", "1")
    client = Client(endpoint="http://127.0.0.1:1")
    job = client.submit(manifest("measured", nodes=1))
    (pod,) = pods(installation, "measured", nodes=1)
    kubelet = Kubelet(installation, "measured")
    kubelet.train(pod)
    log = logs[pod["metadata"]["name"], "trainer"]
    prefix = "2026-01-01 12:00:00,000 rank 0 INFO rewardfl_trainer.train:"
    log.write(f"{prefix} step 1/3 reward 0.1 loss -0.5", f"{prefix} a word", f"{prefix} step 2/3 reward nan loss 1e999")
    assert [(step.step, step.reward, step.loss) for step in client.metrics(job)] == [(1, 0.1, -0.5), (2, None, None)]
    steps = client.metrics(job, follow=True)
    assert [next(steps).step, next(steps).step] == [1, 2]
    log.write(f"{prefix} step 2/3 reward 0.2", f"{prefix} step 3/3 reward 0.3")
    assert next(steps).reward == 0.3
    log.ended = True
    kubelet.end(pod)
    status(installation, "measured", phase="Succeeded")
    assert list(steps) == []


def test_a_suspended_job_has_not_ended_and_is_followed_on_when_it_goes_on(
    installation: Installation, client: Client, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARDFL_STORAGE_ATTEMPTS", "1")
    job = client.submit(manifest("halted", nodes=1), suspend=True)
    asked = threading.Semaphore(0)

    def go_on() -> None:
        for _ in range(3):  # it has been looked at more than once, and found suspended
            assert asked.acquire(timeout=PATIENCE_SECONDS)
        client.resume(job)
        (pod,) = pods(installation, "halted", nodes=1)
        kubelet, log = Kubelet(installation, "halted"), logs[pod["metadata"]["name"], "trainer"]
        log.write("2026-01-01 12:00:00,000 rank 0 INFO rewardfl_trainer.train: step 1/1 reward 0.5")
        log.ended = True
        kubelet.train(pod)
        kubelet.end(pod)
        status(installation, "halted", phase="Succeeded")

    thread = threading.Thread(target=go_on)
    thread.start()
    lines = list(client.logs(job, container="trainer", follow=True, progress=lambda now: asked.release()))
    thread.join()
    assert [line.text.split(": ")[-1] for line in lines] == ["step 1/1 reward 0.5"]
    assert [step.reward for step in Client(endpoint="http://127.0.0.1:1").metrics(job)] == [0.5]


def test_pods_that_cannot_be_asked_about_for_a_moment_neither_hold_up_a_followed_log_nor_end_it(
    installation: Installation, client: Client, logs: Logs, proxied: tuple[ApiProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, kubeconfig = proxied
    job = client.submit(manifest("asked-in-vain", nodes=1))
    (pod,) = pods(installation, "asked-in-vain", nodes=1)
    kubelet, log = Kubelet(installation, "asked-in-vain"), logs[pod["metadata"]["name"], "trainer"]
    kubelet.train(pod)
    log.write("one")
    of_pod = f"/pods/{pod['metadata']['name']}"
    proxy.rules.append(lambda call: Fault(stall=True) if call.path.endswith(of_pod) and not proxy.faults else None)
    lines = Client(kubeconfig=kubeconfig).logs(job, follow=True)
    assert next(lines).text == "one"
    monkeypatch.setattr(connection, "READ_SECONDS", 2.0)
    log.ended = True
    kubelet.end(pod)
    status(installation, "asked-in-vain", phase="Succeeded")
    pool = ThreadPoolExecutor(1)
    try:
        assert pool.submit(list, lines).result(timeout=PATIENCE_SECONDS) == []
    finally:
        pool.shutdown(wait=False)
    assert proxy.faults == 1
    proxy.rules.append(lambda call: Fault(status=503) if call.path.endswith("/pods") and proxy.faults == 1 else None)
    assert [line.text for line in Client(kubeconfig=kubeconfig).logs(job, follow=True)] == ["one"]
    assert proxy.faults == 2


async def test_the_asynchronous_client_does_what_the_other_does(installation: Installation) -> None:
    async with AsyncClient() as client:
        job = await client.submit(manifest("asynchronous"))
        waiting = asyncio.create_task(client.wait(job))
        phases = []
        async for now in client.watch(job):
            phases.append(now.phase)
            following = {"": "Training", "Training": "Succeeded"}.get(now.phase)
            if following is not None:
                await asyncio.to_thread(status, installation, "asynchronous", phase=following)
        assert phases == ["", "Training", "Succeeded"]
        assert (await waiting).phase == "Succeeded"
        assert "asynchronous" in {job.name for job in await client.list()}
        await client.delete(job)


async def test_what_is_cancelled_ends_its_thread_and_its_watch_soon(editor: str) -> None:
    before = threading.active_count()
    async with AsyncClient() as client:
        job = await client.submit(manifest("cancelled"))
        changes = asyncio.Event()
        waiting = asyncio.create_task(client.wait(job, progress=lambda _: loop.call_soon_threadsafe(changes.set)))
        loop = asyncio.get_running_loop()
        await changes.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.5)  # by now it reads a watch that says nothing
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with aclosing(client.watch(job)) as watch:
            assert (await anext(watch)).name == "cancelled"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.5)
    began = time.monotonic()
    await asyncio.to_thread(until, "its threads have ended", lambda: threading.active_count() <= before + 1, PATIENCE_SECONDS)
    assert time.monotonic() - began < SOON_SECONDS < client_jobs.WATCH_SECONDS


def test_events_and_jobs_of_other_namespaces_are_found(client: Client, listed: str) -> None:
    assert [job.name for job in client.list(listed, selector="team=faces")] == ["alpha"]
    assert repr(client.get("alpha", listed)) == "<RewardFLJob team/alpha: Training, step 12/40>"
    assert client.events("alpha", listed) == []
    assert {("team", "alpha"), ("team", "beta")} <= {(job.namespace, job.name) for job in client.list(everywhere=True)}
