"""LocalCluster: the whole local Kubernetes behind a few calls. It must not know what is tried on it."""

import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from . import network
from .build import HELM, KUBERNETES, ensure_built
from .control_plane import AUDIT_LOG, ControlPlane, Place
from .host_image import HOST_IMAGE
from .machine import ensure_packages, require_root
from .node import NODE_NAME, Node
from .node_configuration import DNS_READY_PORT
from .report import ClusterError, run, say, wait_until
from .slots import Slot
from .unpacked import UnpackedImage

_READY_SECONDS = 120
_ADMIN_KUBECONFIG = "admin.kubeconfig"


class LocalCluster:
    """A running cluster that this process owns. Use it as a context manager, or call `stop`.

    Attributes:
        kubeconfig: path of the cluster administrator's kubeconfig.
    """

    def __init__(self, slot: Slot, *, control_plane_only: bool, audited_group: str = "") -> None:
        self._slot = slot
        self._audited_group = audited_group
        self._node = None if control_plane_only else Node(slot)
        self.kubeconfig: Path = slot.folder / _ADMIN_KUBECONFIG

    @classmethod
    def start(cls, *, control_plane_only: bool = False, detached: bool = False, audited_group: str = "") -> Self:
        """Build and install what is missing, clear what killed sessions left, start a cluster and wait until it is ready.

        Args:
            control_plane_only: etcd, API server, controllers and scheduler without a node; needs no root.
            detached: the cluster outlives this process; `python -m tests.cluster down` ends it.
            audited_group: a group of users; what they ask of the API server is written to `audit_log`.

        Raises:
            ClusterError: it cannot start; nothing is left running.
        """
        if not control_plane_only:
            require_root()
        ensure_packages(control_plane_only=control_plane_only)
        ensure_built()
        slot = Slot.acquire() if control_plane_only else Slot.acquire(accept=network.is_free)
        cluster = cls(slot, control_plane_only=control_plane_only, audited_group=audited_group)
        try:
            cluster._bring_up(detached=detached)
        except BaseException:
            slot.clear()
            raise
        if detached:
            slot.detach()
        return cluster

    @property
    def bridge_address(self) -> str:
        """The machine's address on the pods' bridge: what listens there is reachable from pods and from the machine."""
        return str(self._require_node().addresses.machine)

    @property
    def state_folder(self) -> Path:
        """Logs (`logs/`), pods' logs (`log/pods/`) and data of the cluster; gone when it stops."""
        return self._slot.folder

    @property
    def audit_log(self) -> Path:
        """One JSON document a line for each answer to the audited group (audit.k8s.io/v1 Event)."""
        return self._slot.folder / AUDIT_LOG

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str:
        """Run kubectl as the cluster's administrator and return what it printed; ClusterError when it fails."""
        return run(kubectl_command(self.kubeconfig, arguments), stdin=stdin, timeout_seconds=timeout_seconds)

    def wait_for_definition(self, name: str) -> None:
        """Wait until a CustomResourceDefinition is served. `kubectl wait` for a condition fails where there is none yet."""
        for wanted in ("jsonpath={.status.conditions}", "condition=Established"):
            self.kubectl("wait", f"--for={wanted}", f"crd/{name}", "--timeout=30s")

    def helm(self, *arguments: str, timeout_seconds: float = 180) -> str:
        """Run helm as the cluster's administrator and return what it printed; ClusterError when it fails."""
        return run([HELM.program("helm"), f"--kubeconfig={self.kubeconfig}", *arguments], timeout_seconds=timeout_seconds)

    def load_host_image(self) -> str:
        """The name of the image whose pods run this checkout by `host_image_pod_patch`; the node holds it from its start."""
        self._require_node()
        return HOST_IMAGE

    def load_image(self, archive: Path, repository: str = "") -> list[str]:
        """Import a docker-archive or OCI tar into the node; returns the names of the images in it.

        With `repository` the name is `repository@digest`, as if the image had been pulled from there by its digest.
        """
        return self._require_node().import_image(archive, repository)

    def link_image(self, image: UnpackedImage) -> bool:
        """Let the node share an image's unpacked layers; False where their file system does not allow it, and nothing is done."""
        node = self._require_node()
        if not node.can_link(image):
            return False
        node.link_image(image)
        return True

    def spawn(self, name: str, command: Sequence[str]) -> None:
        """Start a program that ends with the cluster; what it says goes to `logs/NAME.log`."""
        self._slot.processes.spawn(name, command)

    def require_running(self) -> None:
        """Raise ClusterError, with the end of its log, when one of the programs has ended."""
        self._slot.processes.require_running()

    def stop(self) -> None:
        """Stop everything that was started and remove every trace of it."""
        self._slot.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _bring_up(self, *, detached: bool) -> None:
        say(f"starting the {'control plane' if self._node is None else 'cluster'} in {self._slot.folder}")
        place = Place.on_this_machine()
        if self._node is not None:
            self._node.create(lifeline=not detached)
            place = Place.in_namespaces(self._node.addresses.node, self._node.enter)
        control_plane = ControlPlane(self._slot.folder, self._slot.processes, place, self._audited_group)
        control_plane.start_storage_and_api()
        if self._node is not None:
            self._node.start_runtime()
        self._wait("the API server is ready", ["get", "--raw", "/readyz"])
        control_plane.start_controllers()
        if self._node is not None:
            self._start_node(self._node, control_plane)
        self._wait("the default service account exists", ["get", "serviceaccount", "default", "--namespace=default"])
        self._slot.processes.require_running()
        say(f"ready: export KUBECONFIG={self.kubeconfig}")

    def _start_node(self, node: Node, control_plane: ControlPlane) -> None:
        node.start_kubernetes(control_plane)
        self.kubectl("apply", "-f", "-", stdin=node.roles())
        self._wait("the node registers", ["get", "node", NODE_NAME])
        self._wait("the node is ready", ["wait", "--for=condition=Ready", f"node/{NODE_NAME}", "--timeout=2s"])
        wait_until(
            lambda: answers(f"http://{node.addresses.node}:{DNS_READY_PORT}/ready"),
            "CoreDNS is ready",
            timeout_seconds=_READY_SECONDS,
        )

    def _wait(self, what: str, kubectl_arguments: Sequence[str]) -> None:
        """Repeat a kubectl call until it succeeds; ends early, with the log, when one of the programs dies."""

        def succeeds() -> bool:
            self._slot.processes.require_running()
            try:
                self.kubectl(*kubectl_arguments, timeout_seconds=10)
            except ClusterError:
                return False
            return True

        wait_until(succeeds, what, timeout_seconds=_READY_SECONDS)

    def _require_node(self) -> Node:
        if self._node is None:
            raise ClusterError("this cluster has no node: start it with control_plane_only=False")
        return self._node


def kubectl_command(kubeconfig: Path, arguments: Sequence[str]) -> list[str]:
    """The kubectl command line for a cluster's kubeconfig."""
    return [KUBERNETES.program("kubectl"), f"--kubeconfig={kubeconfig}", *arguments]


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
