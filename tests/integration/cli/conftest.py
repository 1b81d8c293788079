"""One control plane for all tests of the command line, and a user with the role `edit`. No operator runs."""

import json
from collections.abc import Iterator

import pytest

from tests.integration.cli.commands import FAILED, user
from tests.integration.cli.played_logs import Logs, played_logs
from tests.integration.operator_harness import Installation, manifest, now


@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation.start(tmp_path_factory.mktemp("installation")) as running:
        yield running


@pytest.fixture(scope="package")
def editor(installation: Installation) -> str:
    return user(installation, "editor", "edit")


@pytest.fixture(scope="package")
def logs(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    with played_logs(installation, tmp_path_factory.mktemp("kubelet")) as running:
        yield running


@pytest.fixture(autouse=True)
def context(editor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", editor)


@pytest.fixture(scope="package")
def listed(installation: Installation) -> str:
    """A namespace with two jobs, one of which trains in a queue."""
    installation.cluster.kubectl("create", "namespace", "team")
    for name, labels in (("beta", {}), ("alpha", {"kueue.x-k8s.io/queue-name": "gpus", "team": "faces"})):
        body = manifest(name)
        body["metadata"].update(namespace="team", labels=labels)
        installation.create(body)
    state = {
        "phase": "Training", "progress": "12/40", "step": 12, "totalSteps": 40, "percent": 30, "reward": "0.612", "eta": "1h12m",
        "restarts": 1, "checkpoint": {"step": 10, "uri": "s3://b/c/", "time": now()}, "observedGeneration": 1,
        "conditions": [{**FAILED, "type": "Running", "reason": "Training"}],
    }  # fmt: skip
    patch = json.dumps({"status": state})
    installation.cluster.kubectl(
        "patch", "rewardfljob", "alpha", "--namespace=team", "--type=merge", "--subresource=status", "-p", patch
    )
    return "team"
