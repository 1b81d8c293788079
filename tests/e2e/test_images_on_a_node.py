"""The product's images where they run: on a node, from the chart, as restricted as their pods are."""

import json
from typing import Any

import pytest

from rewardfl_api import __version__
from tests.cluster.report import ClusterError, wait_until
from tests.cluster.stack import OPERATOR_NAMESPACE, Stack
from tests.e2e.demo_run import DemoRun

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

OPERATOR = f"rewardfl-operator:{__version__}"
TRAINER = f"rewardfl-trainer:{__version__}"
PROBE_SECONDS = 300
PROBE = """
import json, os, shutil, subprocess, time
began = time.monotonic()
import torch
imported = time.monotonic() - began
from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.optimizer import make_optimizer
weight = torch.nn.Parameter(torch.ones(1000))
reference = torch.nn.Parameter(torch.ones(1000))
given = {"modelPaths": ["s3://a/b"], "rewardModelPath": "s3://a/c/", "minTimestepBoundary": 0.9}
parameters = TrainingParameters.model_validate({**given, "learningRate": 0.1, "weightDecay": 0.01})
steps = []
for parameter, offloaded in ((weight, True), (reference, False)):
    optimizer = make_optimizer([parameter], parameters, offloaded=offloaded)
    for number in range(3):
        parameter.grad = torch.linspace(-1, 1, 1000) * (number + 1)
        optimizer.step()
    steps.append(type(optimizer).__name__)
try:
    open("/opt/rewardfl/there", "w")
    refused = ""
except OSError as error:
    refused = error.strerror
print(json.dumps({
    "optimizers": steps,
    "moved": float((weight - 1).abs().max()),
    "difference": float((weight - reference).abs().max()),
    "compilers": [name for name in ("cc", "gcc", "g++", "c++", "clang", "nvcc") if shutil.which(name)],
    "version": subprocess.run(["rewardfl", "version"], capture_output=True, text=True).stdout.strip(),
    "pip_check": subprocess.run(["pip", "check"], capture_output=True, text=True).stdout.strip(),
    "user": os.getuid(),
    "root_is_read_only": refused,
    "cuda": torch.version.cuda,
    "import_torch_seconds": imported,
}))
"""


@pytest.fixture(scope="module")
def probe(stack: Stack) -> dict[str, Any]:
    """What a program found out that ran in the trainer's image as restricted as a job's pods are."""
    restricted = {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    container = {
        "name": "probe", "image": TRAINER, "imagePullPolicy": "Never",
        "command": ["python", "-c", PROBE], "securityContext": restricted,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "env": [{"name": "DS_ACCELERATOR", "value": "cuda"}],  # as on a GPU, for which DeepSpeed would compile anew
    }  # fmt: skip
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    stack.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec})

    def phase() -> str:
        return stack.cluster.kubectl("get", "pod", "probe", "--output=jsonpath={.status.phase}")

    wait_until(lambda: phase() in ("Succeeded", "Failed"), "the probe ends", timeout_seconds=PROBE_SECONDS, poll_seconds=0.5)
    log = stack.cluster.kubectl("logs", "probe")
    assert phase() == "Succeeded", log
    found: dict[str, Any] = json.loads(log.splitlines()[-1])
    print(f"import torch: {found['import_torch_seconds']:.1f} s")
    return found


def operator_pods(stack: Stack) -> list[dict[str, Any]]:
    found = stack.cluster.kubectl("get", "pods", "--namespace", OPERATOR_NAMESPACE, "--output=json")
    return list(json.loads(found)["items"])


def in_operator(stack: Stack, *command: str) -> str:
    return stack.cluster.kubectl("exec", "--namespace", OPERATOR_NAMESPACE, "deployment/rewardfl-operator", "--", *command)


def test_operator_and_job_run_the_products_images_and_mount_nothing_of_the_node(run: DemoRun) -> None:
    of_the_operator = operator_pods(run.stack)
    assert len(run.pods) == 2
    for image, pods in ((TRAINER, run.pods), (OPERATOR, of_the_operator)):
        containers = [container for pod in pods for kind in KINDS for container in pod["spec"].get(kind, [])]
        assert {container["image"] for container in containers} == {image}
    volumes = [volume for pod in (*of_the_operator, *run.pods) for volume in pod["spec"]["volumes"]]
    assert [volume for volume in volumes if "hostPath" in volume] == []


KINDS = ("initContainers", "containers")


def test_the_operator_runs_from_its_image_under_restricted_pod_security(stack: Stack) -> None:
    namespace = json.loads(stack.cluster.kubectl("get", "namespace", OPERATOR_NAMESPACE, "--output=json"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert in_operator(stack, "id", "-u").strip() == "65532"
    with pytest.raises(ClusterError, match="Read-only file system"):
        in_operator(stack, "sh", "-c", "echo >/opt/rewardfl/there")


def test_the_command_line_in_the_operator_image_says_its_version(stack: Stack) -> None:
    assert in_operator(stack, "rewardfl", "version").strip() == __version__


def test_the_trainer_image_runs_as_another_user_than_root_on_a_read_only_root(probe: dict[str, Any]) -> None:
    assert (probe["user"], probe["root_is_read_only"]) == (65532, "Read-only file system")


def test_the_command_line_in_the_trainer_image_says_its_version(probe: dict[str, Any]) -> None:
    assert probe["version"] == __version__


def test_pip_finds_nothing_missing_in_the_trainer_image(probe: dict[str, Any]) -> None:
    assert probe["pip_check"] == "No broken requirements found."


def test_cpu_adam_steps_without_a_compiler(probe: dict[str, Any]) -> None:
    assert probe["optimizers"] == ["DeepSpeedCPUAdam", "GuardedAdamW"]
    assert probe["moved"] > 0.1
    assert probe["difference"] < 1e-5
    assert probe["compilers"] == []


def test_the_trainer_image_has_cuda(probe: dict[str, Any]) -> None:
    assert probe["cuda"].startswith("13.")
