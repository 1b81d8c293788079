"""The demo's job, run by the product's own images: operator and trainer as users pull them, nothing of this machine mounted into
them, in namespaces that refuse what is not restricted. `make test-images`; the images are built first, 7 GB.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from docker.load import built_images
from docker.tools import Tool
from examples.demo import read_manifest
from rewardfl_api import __version__
from tests.cluster.report import wait_until
from tests.cluster.stack import BUCKET, OPERATOR_NAMESPACE, Stack
from tests.images.conftest import MARK

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.release, pytest.mark.timeout(3000)]

IMAGE = f"rewardfl-trainer:{__version__}"
JOB_TIMEOUT_SECONDS = 900
PROBE_SECONDS = 180
PROBE = """
import importlib.util, json, shutil, subprocess, sys, time
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
print(json.dumps({
    "optimizers": steps,
    "moved": float((weight - 1).abs().max()),
    "difference": float((weight - reference).abs().max()),
    "compilers": [name for name in ("cc", "gcc", "g++", "c++", "clang", "nvcc") if shutil.which(name)],
    "version": subprocess.run(["rewardfl", "version"], capture_output=True, text=True).stdout.strip(),
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "import_torch_seconds": imported,
}))
"""


OPEN_TO_ALL = r"! -type l \( -perm -0002 ! -perm -1000 -o -type f -perm /6000 \)"


@pytest.fixture(scope="module")
def stack(lent: None) -> Iterator[Stack]:
    """The local cluster with both images, built with settings that bear a mark."""
    with Stack.start(built_images) as running:
        yield running


@pytest.fixture(scope="module")
def finished(stack: Stack) -> dict[str, Any]:
    """The demo's job after its end, with the pods that ran it under `pods`."""
    manifest = read_manifest(stack.storage_spec())
    stack.apply(manifest)
    status = stack.finish(manifest["metadata"]["name"], JOB_TIMEOUT_SECONDS)
    pods = json.loads(stack.cluster.kubectl("get", "pods", "--output=json"))["items"]
    return {"status": status, "pods": pods, "output": manifest["spec"]["output"]}


@pytest.fixture(scope="module")
def probe(stack: Stack) -> dict[str, Any]:
    """What a program found out that ran in the trainer's image, as restricted as a job's pods are."""
    restricted = {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    container = {
        "name": "probe", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["python", "-c", PROBE], "securityContext": restricted,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "env": [{"name": "DS_ACCELERATOR", "value": "cuda"}],  # as on a GPU, for which DeepSpeed would compile anew
    }  # fmt: skip
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    stack.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec})

    def phase() -> str:
        return stack.cluster.kubectl("get", "pod", "probe", "--output=jsonpath={.status.phase}")

    wait_until(lambda: phase() in ("Succeeded", "Failed"), "the probe ends", timeout_seconds=PROBE_SECONDS, poll_seconds=1)
    log = stack.cluster.kubectl("logs", "probe")
    assert phase() == "Succeeded", log
    found: dict[str, Any] = json.loads(log.splitlines()[-1])
    print(f"import torch: {found['import_torch_seconds']:.1f} s")
    return found


def test_the_demo_succeeds_in_the_images(stack: Stack, finished: dict[str, Any]) -> None:
    assert finished["status"]["phase"] == "Succeeded"
    prefix = str(finished["output"]).removeprefix(f"s3://{BUCKET}/")
    listing = stack.storage.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    assert any(item["Key"].endswith(".safetensors") for item in listing["Contents"])


def test_no_pod_mounts_anything_of_the_node(stack: Stack, finished: dict[str, Any]) -> None:
    operators = json.loads(stack.cluster.kubectl("get", "pods", "--namespace", OPERATOR_NAMESPACE, "--output=json"))["items"]
    assert len(finished["pods"]) >= 2
    volumes = [volume for pod in (*operators, *finished["pods"]) for volume in pod["spec"]["volumes"]]
    assert [volume for volume in volumes if "hostPath" in volume] == []


def test_cpu_adam_steps_without_a_compiler(probe: dict[str, Any]) -> None:
    assert probe["optimizers"] == ["DeepSpeedCPUAdam", "GuardedAdamW"]
    assert probe["moved"] > 0.1
    assert probe["difference"] < 1e-5
    assert probe["compilers"] == []


def test_the_command_line_in_the_trainer_image_says_its_version(probe: dict[str, Any]) -> None:
    assert probe["version"] == __version__


def test_the_trainer_image_has_cuda(probe: dict[str, Any]) -> None:
    assert probe["cuda"].startswith("13.")


def test_no_file_of_the_trainer_image_is_writable_by_all_or_runs_as_another_user(stack: Stack, tool: Tool) -> None:
    search = (
        f"find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o {OPEN_TO_ALL} -print 2>/dev/null; true"
    )
    assert tool.run(IMAGE, ["sh", "-c", search]).split() == []


def test_nothing_of_the_machine_that_built_it_is_left_in_the_trainer_image(stack: Stack, tool: Tool) -> None:
    search = f"grep -rlF -e {MARK} -e rewardfl-images- /etc /opt /usr /var /tmp 2>/dev/null; true"
    assert tool.run(IMAGE, ["sh", "-c", search]).split() == []
