"""Everything that a job needs, on this machine: cluster, S3 server with models and dataset, and the operator from its chart.

The demo and the end-to-end tests use it; both see the product only through kubectl, helm and S3, as users do.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from .host_image import host_image_pod_patch
from .local_cluster import LocalCluster
from .paths import REPOSITORY
from .report import ClusterError, say
from .seaweedfs import SeaweedFS

BUCKET = "rewardfl"
CREDENTIALS_SECRET = "s3-credentials"
RELEASE = "rewardfl"
OPERATOR_NAMESPACE = "rewardfl-system"
CHART = REPOSITORY / "charts" / "rewardfl"
FINISHED_PHASES = ("Succeeded", "Failed")


class Cluster(Protocol):
    """What is needed of a cluster: its two command lines."""

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str: ...

    def helm(self, *arguments: str, timeout_seconds: float = 180) -> str: ...


class Storage(Protocol):
    """What is needed of an S3 service."""

    @property
    def endpoint(self) -> str: ...

    @property
    def access_key(self) -> str: ...

    @property
    def secret_key(self) -> str: ...

    def client(self) -> Any: ...


ImageLoader = Callable[[LocalCluster], dict[str, Any]]
"""Brings images onto the cluster's node and returns the chart's values that name them."""


@dataclass
class Stack:
    """A cluster in which a RewardFLJob can run."""

    cluster: Cluster
    storage: Storage

    @classmethod
    @contextmanager
    def start(cls, images: ImageLoader | None = None) -> Iterator["Stack"]:
        """Start everything and wait until the operator is ready; stop everything at the end of the block.

        Args:
            images: brings the product's own images onto the node; pods then run these, nothing of this machine is mounted into
                them, and their namespaces hold them to restricted pod security. Without it pods run this checkout.
        """
        with LocalCluster.start() as cluster, SeaweedFS.start(cluster.bridge_address) as storage:
            stack = cls(cluster, storage)
            storage.client().create_bucket(Bucket=BUCKET)
            if images is None:
                values = host_values(cluster.load_host_image())
            else:
                values = images(cluster)
                for namespace in (OPERATOR_NAMESPACE, "default"):
                    stack.restrict(namespace)
            stack.prepare(values)
            yield stack

    def restrict(self, namespace: str) -> None:
        """Make the namespace, unless it is there, and let it refuse every pod that is not restricted."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})

    def prepare(self, values: dict[str, Any]) -> None:
        """Upload models and dataset, make the credentials Secret, and install the chart with `values`."""
        self.upload_models()
        self.make_credentials(CREDENTIALS_SECRET, self.storage.access_key, self.storage.secret_key)
        self.install_operator(values)

    def storage_spec(self) -> dict[str, str]:
        """The `spec.storage` of a job here."""
        return {"endpoint": self.storage.endpoint, "credentialsSecretName": CREDENTIALS_SECRET}

    def upload_models(self) -> None:
        """Write the tiny models and the example dataset, as `rewardfl tiny-models` does, and put them into the bucket."""
        say("uploading the tiny models and the example dataset")
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["rewardfl", "tiny-models", scratch], check=True, env=program_environment(), stdout=subprocess.DEVNULL)
            root = Path(scratch)
            for folder in sorted(root.glob("dataset*")):
                self.upload_folder(folder, folder.name)
            self.upload_folder(root, "models", leave_out="dataset")

    def upload_folder(self, folder: Path, prefix: str, leave_out: str = "\0") -> None:
        """Put every file below `folder` into the bucket below `prefix`, but for the sub-folders that begin with `leave_out`."""
        client = self.storage.client()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            key = path.relative_to(folder)
            if not key.parts[0].startswith(leave_out):
                client.upload_file(str(path), BUCKET, f"{prefix}/{key.as_posix()}")

    def make_credentials(self, name: str, access_key: str, secret_key: str) -> None:
        """Create the Secret that jobs name as storage.credentialsSecretName. Passed through a pipe, not the command line."""
        data = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})

    def install_operator(self, values: dict[str, Any]) -> None:
        """`helm upgrade --install` with `values`, and wait until the operator is ready."""
        say("installing the chart")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            self.cluster.helm(
                "upgrade", "--install", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE, "--create-namespace",
                "--values", file.name, "--wait", "--timeout", "120s",
            )  # fmt: skip

    def apply(self, manifest: dict[str, Any]) -> None:
        """`kubectl apply` one object."""
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def job(self, name: str) -> dict[str, Any]:
        """The RewardFLJob `name`, as the API server has it."""
        answer = self.cluster.kubectl("get", "rewardfljob", name, "-o", "json")
        return dict(json.loads(answer))

    def statuses(self, name: str, timeout_seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the job's status each time that it is found changed, the finished one last.

        Raises:
            ClusterError: the job did not finish in time; the message says where it stood.
        """
        end = time.monotonic() + timeout_seconds
        last: dict[str, Any] | None = None
        while time.monotonic() < end:
            status = dict(self.job(name).get("status") or {})
            if status and status != last:
                yield status
                last = status
            if status.get("phase") in FINISHED_PHASES:
                return
            time.sleep(0.5)
        raise ClusterError(
            f"rewardfljob {name} did not finish in {timeout_seconds:.0f} s; its status: {json.dumps(last, indent=1)}"
        )

    def finish(self, name: str, timeout_seconds: float) -> dict[str, Any]:
        """Wait for the end of the job and return its last status."""
        return list(self.statuses(name, timeout_seconds))[-1]


def host_values(image: str) -> dict[str, Any]:
    """Chart values with which operator and trainer pods run this checkout's Python from read-only host folders."""
    patch = host_image_pod_patch()
    repository, _, tag = image.rpartition(":")
    container = {"env": patch["env"], "volumeMounts": patch["volumeMounts"]}
    return {
        "image": {"registry": "", "repository": repository, "tag": tag, "pullPolicy": "Never"},
        "extraEnv": patch["env"],
        "extraVolumes": patch["volumes"],
        "extraVolumeMounts": patch["volumeMounts"],
        "trainer": {
            "image": {"registry": "", "repository": repository, "tag": tag, "pullPolicy": "Never"},
            "podTemplate": {
                "spec": {
                    "volumes": patch["volumes"],
                    "initContainers": [{"name": "stage", **container}],
                    "containers": [{"name": "trainer", **container}],
                }
            },
        },
    }


def program_environment() -> dict[str, str]:
    """The environment in which this Python environment's own programs are found first."""
    return {**os.environ, "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', os.defpath)}"}
