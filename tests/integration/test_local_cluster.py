"""The local cluster does what the tests above it rely on, and leaves nothing behind."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from tests.cluster import HOST_IMAGE, ClusterError, LocalCluster, SeaweedFS, host_image_pod_patch, paths
from tests.cluster.build import PAUSE
from tests.cluster.images import Layer, write_archive
from tests.cluster.processes import Stat
from tests.cluster.stack import OPERATOR_NAMESPACE, Stack, host_values
from tests.cluster.unpacked import UnpackedImage

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

WORLD_SIZE = 2
PATIENCE_SECONDS = 300  # importing torch takes 15 s on two idle cores, and much longer beside other work
# Ctrl-C has its usual meaning there even where the tests run in the background, with SIGINT ignored.
_START_A_CLUSTER = """
import signal
from tests.cluster import LocalCluster
signal.signal(signal.SIGINT, signal.default_int_handler)
LocalCluster.start(detached=True)
"""
_OWN_A_CLUSTER = """
import time
from tests.cluster import LocalCluster
with LocalCluster.start() as cluster:
    time.sleep(600)
"""
# What every process of the job does: it finds the others through DNS, sums the ranks, and says who it is.
_ALL_REDUCE = """
import os, socket, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
print("SUM", total.item(), "UID", os.getuid(), "RANK", dist.get_rank(), flush=True)
dist.destroy_process_group()
"""
_RESTRICTED = {
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start() as running:
        yield running


def _pod_spec(command: list[str]) -> dict[str, Any]:
    """A pod of the host image under the restricted pod security standard."""
    patch = host_image_pod_patch()
    return {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [*patch["volumes"], {"name": "tmp", "emptyDir": {}}],
        "containers": [
            {
                "name": "main",
                "image": HOST_IMAGE,
                "command": command,
                "env": patch["env"],
                "volumeMounts": [*patch["volumeMounts"], {"name": "tmp", "mountPath": "/tmp"}],
                "securityContext": _RESTRICTED,
            }
        ],
    }


def _apply(cluster: LocalCluster, *manifests: dict[str, Any]) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))


def _run_pod(cluster: LocalCluster, name: str, program: str) -> str:
    """Run Python source in a pod to its end, which must be a success, and return what it printed."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": _pod_spec(["python", "-c", program])}
    _apply(cluster, pod)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (phase := cluster.kubectl("get", "pod", name, "--output=jsonpath={.status.phase}")) not in ("Succeeded", "Failed"):
        assert time.monotonic() < deadline, cluster.kubectl("describe", "pod", name)
        time.sleep(0.3)
    said = cluster.kubectl("logs", name)
    assert phase == "Succeeded", said
    return said


def _namespace_members(pid: int) -> list[Stat]:
    """The processes that live in a PID namespace of their own below `pid`, and `pid` with its descendants."""
    stats = [Stat.of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    parents = {stat.pid: stat.parent for stat in stats if stat is not None}

    def descends(member: int) -> bool:
        while member and member != pid:
            member = parents.get(member, 0)
        return member == pid

    return [stat for stat in stats if stat is not None and descends(stat.pid)]


def _processes_of(folder: Path) -> list[Stat]:
    roots = [Stat.parse(path.read_text()) for path in sorted((folder / "pids").iterdir())]
    return [member for root in roots if root is not None for member in _namespace_members(root.pid)]


def _traces_of_clusters() -> dict[str, set[str]]:
    """Everything on this machine, outside the state folder, that a cluster could leave; empty sets on a clean machine."""
    tables = subprocess.run([paths.program("nft"), "list", "tables"], capture_output=True, text=True, check=True).stdout
    places = ("/var/lib/kubelet", "/var/lib/cni", "/var/lib/containerd", "/var/log/pods", "/run/containerd", "/etc/cni/net.d")
    return {
        "interfaces": {path.name for path in Path("/sys/class/net").iterdir()},
        "namespaces": {path.name for path in Path("/run/netns").glob("*")},
        "mounts": {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "tables": set(tables.splitlines()),
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("**/rewardfl-*")},
        "places": {place for place in places if Path(place).exists()},
        "temporary": {path.name for path in Path("/tmp").glob("seaweedfs-*")},
        "forwarding": {Path("/proc/sys/net/ipv4/ip_forward").read_text()},
    }


def test_two_pods_of_an_indexed_job_meet_through_dns_and_sum_with_torchrun(cluster: LocalCluster) -> None:
    command = ["torchrun", f"--nnodes={WORLD_SIZE}", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=sum"]
    command += ["--rdzv-endpoint=sum-0.sum:29400", "--no-python", "python", "-c", _ALL_REDUCE]
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": "sum"}}
    job = {
        "completions": WORLD_SIZE,
        "parallelism": WORLD_SIZE,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": _pod_spec(command) | {"subdomain": "sum"}},
    }
    _apply(
        cluster,
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "sum"}, "spec": service},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum"}, "spec": job},
    )

    cluster.kubectl(
        "wait", "--for=condition=Complete", "job/sum", f"--timeout={PATIENCE_SECONDS}s", timeout_seconds=PATIENCE_SECONDS + 10
    )

    said = cluster.kubectl("logs", "--selector=job-name=sum", "--tail=-1").splitlines()
    assert sorted(line for line in said if line.startswith("SUM")) == [
        f"SUM 3.0 UID 65532 RANK {rank}" for rank in range(WORLD_SIZE)
    ]


def test_a_restricted_pod_imports_what_the_trainer_needs_from_the_checkout(cluster: LocalCluster) -> None:
    said = _run_pod(cluster, "imports", "import torch, deepspeed, diffsynth, kopf, rewardfl_api; print(rewardfl_api.__file__)")
    assert said.splitlines()[-1].startswith(str(paths.REPOSITORY / "crds"))


def test_a_pod_cannot_write_to_the_checkout(cluster: LocalCluster) -> None:
    said = _run_pod(cluster, "writes", f"import os; print(os.access({str(paths.REPOSITORY)!r}, os.W_OK))")
    assert said.splitlines() == ["False"]


def test_pods_reach_services_and_this_machine_and_nothing_beyond(cluster: LocalCluster) -> None:
    with SeaweedFS.start(cluster.bridge_address) as storage:
        said = _run_pod(
            cluster,
            "reaches",
            f"""
import socket, ssl, urllib.request
trust = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
print(urllib.request.urlopen("https://kubernetes.default.svc/version", context=trust).status)
print(urllib.request.urlopen("{storage.endpoint}/healthz").status)
for call in (lambda: socket.create_connection(("198.51.100.1", 443), 5), lambda: socket.getaddrinfo("example.invalid", 443)):
    try:
        print(call())
    except OSError as error:
        print(error.strerror)
""",
        )
    assert said.splitlines() == ["200", "200", "Network is unreachable", "Name or service not known"]


def test_memory_limits_are_enforced_and_reported(cluster: LocalCluster) -> None:
    spec = _pod_spec(["python", "-c", "hoard = [bytearray(1 << 26) for _ in range(16)]"])
    spec["containers"][0]["resources"] = {"limits": {"memory": "128Mi"}}
    _apply(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hoard"}, "spec": spec})
    reason = "jsonpath={.status.containerStatuses[0].state.terminated.reason}=OOMKilled"
    cluster.kubectl("wait", f"--for={reason}", "pod/hoard", "--timeout=60s", timeout_seconds=70)


def test_kubectl_exec_reaches_a_running_container(cluster: LocalCluster) -> None:
    _apply(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "idle"}, "spec": _pod_spec(["/pause"])})
    cluster.kubectl("wait", "--for=condition=Ready", "pod/idle", "--timeout=60s", timeout_seconds=70)
    assert cluster.kubectl("exec", "idle", "--", "id", "-u").strip() == "65532"


def test_the_demos_chart_values_run_the_checkouts_operator(cluster: LocalCluster) -> None:
    # The end-to-end tests run the product's images; `make demo` runs the checkout by these values.
    values = host_values(cluster.load_host_image())
    Stack(cluster, storage=None).install_operator(values)  # type: ignore[arg-type]
    pod = json.loads(cluster.kubectl("get", "pods", "--namespace", OPERATOR_NAMESPACE, "--output=json"))["items"][0]
    assert pod["spec"]["containers"][0]["image"] == HOST_IMAGE
    asked = ["exec", "--namespace", OPERATOR_NAMESPACE, pod["metadata"]["name"], "--", "python", "-c"]
    where = cluster.kubectl(*asked, "import rewardfl_operator; print(rewardfl_operator.__file__)")
    assert where.startswith(str(paths.REPOSITORY / "operator"))


def test_an_image_from_a_tar_file_runs(cluster: LocalCluster, tmp_path: Path) -> None:
    layer = Layer()
    layer.folder("greeting")
    layer.file("pause", Path(PAUSE.program("pause")).read_bytes(), 0o755)
    write_archive(tmp_path / "image.tar", "localhost/rewardfl/own:1", layer.to_bytes(), ["/pause"])

    assert cluster.load_image(tmp_path / "image.tar") == ["localhost/rewardfl/own:1"]

    container = {"name": "main", "image": "localhost/rewardfl/own:1", "imagePullPolicy": "Never"}
    _apply(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own"}, "spec": {"containers": [container]}})
    cluster.kubectl("wait", "--for=condition=Ready", "pod/own", "--timeout=60s", timeout_seconds=70)


def test_an_image_whose_layers_are_unpacked_here_is_linked_also_from_a_mount_of_its_own(cluster: LocalCluster) -> None:
    store = cluster.state_folder / "store"
    layer = store / "layer"
    layer.mkdir(parents=True)
    (layer / "pause").write_bytes(Path(PAUSE.program("pause")).read_bytes())
    (layer / "pause").chmod(0o755)
    configuration = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]}}
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{'a' * 64}"]}
    encoded = json.dumps(configuration | {"rootfs": rootfs}).encode()
    digests = {"config": f"sha256:{hashlib.sha256(encoded).hexdigest()}", "layer": rootfs["diff_ids"][0]}
    kinds = {"config": "application/vnd.oci.image.config.v1+json", "layer": "application/vnd.oci.image.layer.v1.tar"}
    parts = {part: {"mediaType": kinds[part], "digest": digests[part], "size": len(encoded)} for part in kinds}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": parts["config"], "layers": [parts["layer"]]}
    image = UnpackedImage("localhost/rewardfl/linked:1", json.dumps(manifest).encode(), encoded, (layer,))
    subprocess.run(["mount", "--bind", str(store), str(store)], check=True)  # as buildah does with its own
    try:
        assert cluster.link_image(image)
    finally:
        subprocess.run(["umount", str(store)], check=True)

    assert (layer / "pause").stat().st_nlink == 2
    container = {"name": "main", "image": image.name, "imagePullPolicy": "Never"}
    _apply(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "linked"}, "spec": {"containers": [container]}})
    cluster.kubectl("wait", "--for=condition=Ready", "pod/linked", "--timeout=60s", timeout_seconds=70)


def test_a_failing_kubectl_call_says_what_kubectl_said(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError, match='pods "nobody" not found'):
        cluster.kubectl("get", "pod", "nobody")


def test_stopping_a_cluster_leaves_nothing_of_it() -> None:
    with LocalCluster.start(control_plane_only=True):  # installs and builds what is missing, before the comparison begins
        pass
    before = _traces_of_clusters()
    with LocalCluster.start() as cluster, SeaweedFS.start(cluster.bridge_address):
        folder = cluster.state_folder
        _apply(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "idle"}, "spec": _pod_spec(["/pause"])})
        cluster.kubectl("wait", "--for=condition=Ready", "pod/idle", "--timeout=60s", timeout_seconds=70)
        members = _processes_of(folder)
        during = _traces_of_clusters()

    assert len(members) > 10
    assert [member for member in members if member.is_running] == []
    assert {kind for kind in before if during[kind] - before[kind]} == {"interfaces", "cgroups", "temporary"}
    assert _traces_of_clusters() == before
    assert not folder.exists()


def test_a_killed_up_is_cleared_by_the_next_one() -> None:
    command = [sys.executable, "-c", _START_A_CLUSTER]
    with subprocess.Popen(command, cwd=paths.REPOSITORY, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr is not None
        folder = next(Path(line.split()[-1]) for line in killed.stderr if "starting the cluster in" in line)
        while not (folder / "pids" / "kubelet").exists():
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    left = _processes_of(folder)
    assert sum(process.is_running for process in left) > 5

    with LocalCluster.start() as cluster:
        assert [process for process in left if process.is_running] == []
        assert "rewardfl-local" in cluster.kubectl("get", "nodes")


def test_an_interrupted_up_cleans_up_after_itself() -> None:
    before = _traces_of_clusters()
    command = [sys.executable, "-c", _START_A_CLUSTER]
    with subprocess.Popen(command, cwd=paths.REPOSITORY, stderr=subprocess.PIPE, text=True) as interrupted:
        assert interrupted.stderr is not None
        folder = next(Path(line.split()[-1]) for line in interrupted.stderr if "starting the cluster in" in line)
        while not (folder / "pids" / "containerd").exists():
            assert interrupted.poll() is None
            time.sleep(0.05)
        left = _processes_of(folder)
        interrupted.send_signal(signal.SIGINT)
        interrupted.communicate(timeout=60)
    assert len(left) > 3
    assert [process for process in left if process.is_running] == []
    assert not folder.exists()
    assert _traces_of_clusters() == before


def test_a_node_dies_with_the_process_that_owns_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWN_A_CLUSTER], cwd=paths.REPOSITORY, stderr=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stderr is not None
        ready = next(line for line in owner.stderr if "ready: export KUBECONFIG=" in line)
        folder = Path(ready.strip().rpartition("=")[2]).parent
        members = _processes_of(folder)
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(member.is_running for member in members):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_control_planes_run_beside_each_other_without_a_node() -> None:
    with LocalCluster.start(control_plane_only=True) as one, LocalCluster.start(control_plane_only=True) as other:
        one.kubectl("create", "namespace", "only-here")
        assert "only-here" in one.kubectl("get", "namespaces")
        assert "only-here" not in other.kubectl("get", "namespaces")
        assert one.helm("list", "--short") == ""
        with pytest.raises(ClusterError, match="has no node"):
            one.load_host_image()


def test_the_s3_server_keeps_objects_and_refuses_wrong_keys() -> None:
    with SeaweedFS.start() as storage:
        client = storage.client()
        client.create_bucket(Bucket="results")
        client.put_object(Bucket="results", Key="a folder/ünïcode.bin", Body=os.urandom(1 << 20))
        assert [entry["Size"] for entry in client.list_objects_v2(Bucket="results")["Contents"]] == [1 << 20]
        storage.secret_key = "wrong"
        with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
            storage.client().list_buckets()
