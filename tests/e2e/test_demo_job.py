"""The main job, end to end: `examples/rewardfljob-tiny.yaml` on a real node, seen only through kubectl and S3."""

import io
import json

import av
import pytest
from safetensors.torch import load

from tests.cluster.stack import BUCKET
from tests.e2e.demo_run import OUTPUT, DemoRun

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PHASES = ["Pending", "Staging", "Preparing", "Training", "Saving", "Succeeded"]


def test_the_demo_job_succeeds(run: DemoRun) -> None:
    assert run.last["phase"] == "Succeeded", json.dumps(run.last, indent=1)
    assert run.last["workers"] == {"active": 0, "succeeded": 2, "failed": 0}
    assert run.last["restarts"] == 0


def test_its_status_went_through_the_phases_in_order(run: DemoRun) -> None:
    seen = list(dict.fromkeys(status["phase"] for status in run.statuses if "phase" in status))
    assert seen == [phase for phase in PHASES if phase in seen]
    # It is looked at twice a second; the node may start the pods before it is seen Pending.
    assert {"Staging", "Training", "Succeeded"} <= set(seen)


def test_its_steps_rose_to_the_total_and_its_eta_was_finite(run: DemoRun) -> None:
    steps = [status["step"] for status in run.statuses if "step" in status]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert run.last["step"] == run.last["totalSteps"] == run.manifest["spec"]["training"]["maxSteps"]
    assert run.last["percent"] == 100
    assert any(status.get("eta") for status in run.statuses if status["phase"] == "Training")


def test_it_reported_the_bytes_that_it_staged(run: DemoRun) -> None:
    staged = run.last["staging"]
    assert staged["bytesDone"] == staged["bytesTotal"] > 1_000_000
    assert staged["filesDone"] == staged["filesTotal"] > 5
    told = [status["staging"].get("files") for status in run.statuses if status["phase"] == "Staging" and "staging" in status]
    assert any(told)
    assert not staged["files"], "each file is told of only while staging"


def test_an_upload_that_an_earlier_start_left_unfinished_is_gone(run: DemoRun) -> None:
    assert run.unfinished_uploads() == []


def test_its_conditions_are_standard_and_belong_to_the_observed_generation(run: DemoRun) -> None:
    conditions = {condition["type"]: condition for condition in run.last["conditions"]}
    assert conditions["Succeeded"]["status"] == "True"
    assert conditions["Succeeded"]["reason"] == "Completed"
    generation = run.stack.job(run.name)["metadata"]["generation"]
    assert all(condition["observedGeneration"] == generation for condition in conditions.values())


def test_its_lora_is_in_the_bucket_and_was_trained(run: DemoRun) -> None:
    assert run.last["results"]["lora"] == f"s3://{BUCKET}/{OUTPUT}lora.safetensors"
    weights = load(run.read("lora.safetensors"))
    lora_b = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert lora_b
    assert all(tensor.abs().max() > 0 for tensor in lora_b), "lora_B starts at zero: a zero tensor was never trained"


def test_its_report_is_in_the_bucket_and_named_in_its_status(run: DemoRun) -> None:
    assert run.last["results"]["report"] == f"s3://{BUCKET}/{OUTPUT}report.html"
    page = run.read("report.html").decode()
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<video ") == 2
    [session] = json.loads(run.read("run.json"))["sessions"]
    assert all(session["seconds"][phase] > 0 for phase in ("staging", "preparing", "training", "evaluating", "saving"))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sample_video_from_before_and_after_training_is_in_the_bucket(run: DemoRun, when: str) -> None:
    keys = [key for key in run.keys if key.startswith(f"samples/{when}/") and key.endswith(".mp4")]
    assert len(keys) == 1
    with av.open(io.BytesIO(run.read(keys[0]))) as video:
        assert len(list(video.decode(video=0))) == run.manifest["spec"]["training"]["numFrames"]


def test_metrics_and_tensorboard_events_are_in_the_bucket(run: DemoRun) -> None:
    lines = run.metrics()
    assert [line["step"] for line in lines] == list(range(1, run.last["totalSteps"] + 1))
    assert all(-1 <= line["reward"] <= 1 for line in lines)
    assert any("tfevents" in key for key in run.keys)


def test_kubectl_shows_the_columns_that_people_look_at(run: DemoRun) -> None:
    header, line = run.stack.cluster.kubectl("get", "rewardfljobs", run.name).splitlines()[:2]
    assert header.split() == ["NAME", "PHASE", "STEP", "PROGRESS", "REWARD", "ETA", "AGE"]
    total = run.last["totalSteps"]
    assert line.split()[:4] == [run.name, "Succeeded", f"{total}/{total}", "100"]


def test_its_pods_ran_restricted(run: DemoRun) -> None:
    assert len(run.pods) == 2
    namespace = json.loads(run.stack.cluster.kubectl("get", "namespace", "default", "-o", "json"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in run.pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"] + pod["spec"]["initContainers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_deleting_it_removes_everything_that_was_made_for_it(run: DemoRun) -> None:
    kinds = "jobs,pods,configmaps,services,serviceaccounts,roles,rolebindings,networkpolicies"
    selector = f"rewardfl.io/job-name={run.name}"
    assert run.stack.cluster.kubectl("get", kinds, "-l", selector, "-o", "name").split()
    run.stack.cluster.kubectl("delete", "rewardfljob", run.name, "--timeout=60s", timeout_seconds=90)
    run.stack.cluster.kubectl(
        "wait", "--for=delete", kinds.replace(",pods", ""), "-l", selector, "--timeout=60s", timeout_seconds=90
    )
    run.stack.cluster.kubectl("wait", "--for=delete", "pods", "-l", selector, "--timeout=60s", timeout_seconds=90)
    assert run.stack.cluster.kubectl("get", kinds, "-l", selector, "-o", "name").split() == []
