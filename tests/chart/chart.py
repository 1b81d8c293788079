"""Renders the chart, and names the values with which every branch of its templates is rendered. Needs no cluster."""

import re
from typing import Any

import yaml

from charts.generate import CHART
from tests.cluster.build import HELM
from tests.cluster.report import run

Manifest = dict[str, Any]

NAMESPACE = "rewardfl-system"
SERVED = "served"
"""A namespace that the values below name as one to serve."""

KUBERNETES_VERSION = "1.34.4"
"""Without --kube-version helm renders for the version that it was linked with, which here is none."""

NOTHING: Manifest = {}
MUCH: Manifest = {
    "nameOverride": "reward",
    "commonLabels": {"team": "vision"},
    "commonAnnotations": {"owner": "me"},
    "image": {"registry": "registry.example.com", "digest": f"sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "networkPolicy": {
        "operator": {
            "enabled": True,
            "ingressFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
        }
    },
    "watchNamespaces": [SERVED, NAMESPACE],
    "serviceAccount": {"name": "reward-operator", "annotations": {"a": "b"}},
    "replicas": 2,
    "operator": {"logFormat": "json", "workers": 2},
    "podLabels": {"c": "d"},
    "podAnnotations": {"e": "f"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "priorityClassName": "system-cluster-critical",
    "extraEnv": [{"name": "A", "value": "1"}],
    "extraVolumes": [{"name": "x", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
    "podDisruptionBudget": {"enabled": True, "maxUnavailable": "50%"},
    "metrics": {
        "service": {"annotations": {"prometheus.io/scrape": "true"}},
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "interval": "30s",
            "scrapeTimeout": "10s",
            "relabelings": [{"action": "labeldrop", "regex": "pod"}],
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "process_.*"}],
        },
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "alertLabels": {"team": "vision"}},
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Training"}},
    },
}
PODS_ARE_SCRAPED: Manifest = {
    "crds": {"enabled": False},
    "rbac": {"aggregate": False},
    "metrics": {
        "service": {"enabled": False},
        "podMonitor": MUCH["metrics"]["serviceMonitor"],
        "prometheusRule": {"enabled": True, "disabledAlerts": ["RewardFLJobsFailing"]},
    },
}
NO_RIGHTS: Manifest = {
    "crds": {"keep": False},
    "rbac": {"create": False},
    "serviceAccount": {"create": False, "name": "mine"},
    "leaderElection": {"enabled": False},
    "fullnameOverride": "mine",
    "metrics": {"prometheusRule": {"enabled": True}},
    "networkPolicy": {"operator": {"enabled": True}},
    "podDisruptionBudget": {"enabled": True},
}
MATRIX = {"nothing": NOTHING, "much": MUCH, "pods are scraped": PODS_ARE_SCRAPED, "no rights": NO_RIGHTS}


class KubernetesLoader(yaml.CSafeLoader):
    """Reads 1e-08 as a number, as Kubernetes does and PyYAML, which follows YAML 1.1 to the letter, does not."""


KubernetesLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+e[-+]?[0-9]+$"), list("-+0123456789"))


def render_text(values: Manifest, chart: str = str(CHART)) -> str:
    """Return what `helm template` prints. ClusterError carries what helm says against the values."""
    arguments = [HELM.program("helm"), "template", "rewardfl", chart, "--namespace", NAMESPACE, "--values", "-"]
    return run([*arguments, "--kube-version", KUBERNETES_VERSION], stdin=yaml.safe_dump(values))


def render(values: Manifest | None = None) -> list[Manifest]:
    """Return the objects that the chart makes of `values`."""
    return [document for document in yaml.load_all(render_text(values or {}), KubernetesLoader) if document]


def one(objects: list[Manifest], kind: str) -> Manifest:
    """Return the only object of a kind."""
    (found,) = [item for item in objects if item["kind"] == kind and "helm.sh/hook" not in annotations(item)]
    return found


def annotations(item: Manifest) -> dict[str, str]:
    """Return an object's annotations."""
    return dict(item["metadata"].get("annotations") or {})
