"""Kueue itself, in a control plane of local_cluster.py: queues, quotas, admission and preemption are its own.

Its manager runs beside the control plane, with leader election, metrics, visibility server and webhooks off. Without webhooks
nothing is defaulted or refused at admission: the operator makes queued Jobs suspended by itself, and Kueue's own validation of
changes is not part of what is tried here. Both versions of its kinds are served without conversion; only the stored one is used.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from .build import KUEUE, ensure_built
from .control_plane import free_ports
from .local_cluster import LocalCluster, answers
from .report import wait_until

NAMESPACE = "kueue-system"
_READY_SECONDS = 90

Raw = dict[str, Any]


class Kueue:
    """A running Kueue. It ends with the cluster.

    Args:
        cluster: where it runs; it sees its kinds from the moment it starts.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        ensure_built(KUEUE)
        self._cluster = cluster
        self._folder = cluster.state_folder / "kueue"
        self._install()
        settings = [f"--config={self._configure()}", f"--kubeconfig={cluster.kubeconfig}"]
        cluster.spawn("kueue", [KUEUE.program("kueue"), *settings])
        wait_until(self._is_ready, "Kueue is ready", timeout_seconds=_READY_SECONDS)

    def apply(self, *manifests: Raw) -> None:
        """`kubectl apply`."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self._cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(items))

    def queue(self, name: str, cpus: int) -> None:
        """Make a LocalQueue in the namespace default. In its ClusterQueue higher priorities preempt lower ones."""
        api = "kueue.x-k8s.io/v1beta2"
        quota = {"name": "cpu", "nominalQuota": str(cpus)}
        group = {"coveredResources": ["cpu"], "flavors": [{"name": "default", "resources": [quota]}]}
        cluster_queue = {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [group],
        }
        self.apply(
            {"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": "default"}},
            {"apiVersion": api, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": cluster_queue},
            {
                "apiVersion": api,
                "kind": "LocalQueue",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterQueue": name},
            },
        )

    def priority(self, name: str, value: int) -> None:
        """Make a WorkloadPriorityClass."""
        api = "kueue.x-k8s.io/v1beta2"
        self.apply({"apiVersion": api, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value})

    def _install(self) -> None:
        """Make its kinds, its namespace, and the Secret that it keeps its certificate in."""
        kinds = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(KUEUE.data_folder.glob("*.yaml"))]
        for kind in kinds:
            # It insists on a webhook to hand its certificate to. Nothing is converted: only the stored version is asked for.
            client = {"url": "https://127.0.0.1:1/convert"}
            conversion = {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}}
            kind["spec"]["conversion"] = conversion
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kueue-webhook-server-cert", "namespace": NAMESPACE}}
        self.apply(*kinds, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.apply(secret)
        self._cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")

    def _configure(self) -> Path:
        """Write its configuration, and return where."""
        certificates = self._folder / "certificates"
        certificates.mkdir(parents=True)
        pki = self._cluster.state_folder / "pki"
        shutil.copy(pki / "kube-apiserver.crt", certificates / "tls.crt")  # of its webhooks, which nobody calls
        shutil.copy(pki / "kube-apiserver.key", certificates / "tls.key")
        self._health, webhook = free_ports(2)
        configuration = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"port": webhook, "host": "127.0.0.1", "certDir": str(certificates)},
            "leaderElection": {"leaderElect": False},
            "integrations": {"frameworks": ["batch/job"]},
            "featureGates": {"VisibilityOnDemand": False},
        }
        path = self._folder / "configuration.yaml"
        path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        return path

    def _is_ready(self) -> bool:
        self._cluster.require_running()
        return answers(f"http://127.0.0.1:{self._health}/readyz")
