"""What the tests of the command line share: the commands themselves, users, and jobs whose status the tests write."""

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from rewardfl_api.cli import app
from tests.integration.operator_harness import Installation, Kubelet, manifest, until

PATIENCE_SECONDS = 30.0
FAILED = {
    "type": "Failed", "status": "True", "reason": "OutOfMemory", "message": "rank 1 needed more memory.",
    "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
}  # fmt: skip


def user(installation: Installation, name: str, role: str) -> str:
    """A kubeconfig of a user who has one of Kubernetes' own roles everywhere."""
    kubectl = installation.cluster.kubectl
    kubectl("create", "serviceaccount", name)
    kubectl("create", "clusterrolebinding", name, f"--clusterrole={role}", f"--serviceaccount=default:{name}")
    verb = "list" if role == "view" else "create"
    account = f"--as=system:serviceaccount:default:{name}"

    def may() -> bool:
        return installation.cluster.kubectl("get", "clusterrole", role, "-o", "json").count("rewardfljobs") > 0

    until(f"the chart's roles are part of {role}", may)
    assert kubectl("auth", "can-i", verb, "rewardfljobs", account).strip() == "yes"
    admin = yaml.safe_load(installation.cluster.kubeconfig.read_text(encoding="utf-8"))
    token = kubectl("create", "token", name, "--duration=1h").strip()
    file = installation.folder / f"{name}.kubeconfig"
    users = [{"name": admin["users"][0]["name"], "user": {"token": token}}]
    file.write_text(yaml.safe_dump({**admin, "users": users}), encoding="utf-8")
    return str(file)


def rewardfl(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="rewardfl")


def submit(name: str, *options: str, **spec: Any) -> Result:
    return rewardfl("submit", "-f", "-", *options, stdin=json.dumps(manifest(name, **spec)))


def status(installation: Installation, name: str, **fields: Any) -> None:
    installation.patch("rewardfljob", name, {"status": {"observedGeneration": 1, **fields}}, subresource="status")


def pods(installation: Installation, name: str, nodes: int = 2) -> list[dict[str, Any]]:
    """Make a job's pods, as its Kubernetes Job would, and take them onto the node."""
    made = []
    for index in range(nodes):
        labels = {"rewardfl.io/job-name": name, "batch.kubernetes.io/job-completion-index": str(index)}
        spec = {
            "restartPolicy": "Never",
            "initContainers": [{"name": "stage", "image": "i"}],
            "containers": [{"name": "trainer", "image": "i"}],
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": f"{name}-{index}-", "labels": labels},
            "spec": spec,
        }
        pod = installation.create(body)
        Kubelet(installation, name).bind(pod)
        made.append(pod)
    return made


@contextmanager
def running(*arguments: str, kubeconfig: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """The program in a process of its own."""
    environment = {**os.environ, **({"KUBECONFIG": kubeconfig} if kubeconfig else {})}
    command = [sys.executable, "-m", "rewardfl_api.cli", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line that the program prints, without its time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_SECONDS)
    assert ready, "the program printed nothing more"
    return process.stdout.readline().rstrip("\n").partition(" ")[2]


def at_a_terminal(arguments: list[str], steps: list[tuple[bytes, Callable[[], None]]]) -> tuple[bytes, int]:
    """Run the program at a terminal; as soon as it shows what a step names, do what the step says."""
    terminal, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    command = [sys.executable, "-m", "rewardfl_api.cli", *arguments]
    with subprocess.Popen(command, env=environment, stdin=other, stdout=other, stderr=other) as process:
        os.close(other)
        shown, waiting = b"", list(steps)
        while select.select([terminal], [], [], PATIENCE_SECONDS)[0]:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # the program has closed its end
                break
            shown += part
            while waiting and waiting[0][0] in shown:
                waiting.pop(0)[1]()
        else:
            process.kill()
        code = process.wait(PATIENCE_SECONDS)
    os.close(terminal)
    assert not waiting, shown.decode()
    return shown, code
