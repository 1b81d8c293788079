"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler, on the machine itself or in a node's namespaces."""

import json
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from .build import KUBERNETES
from .network import KUBERNETES_SERVICE, SERVICES
from .paths import program
from .pki import Authority, KeyPair
from .processes import Processes

LOOPBACK = IPv4Address("127.0.0.1")
SELDOM_COLLECTED = {"GOGC": "400"}
"""With so little in memory Go's collector would run all the time, and take a third of the API server's CPU time."""

_ISSUER = "https://kubernetes.default.svc"
AUDIT_LOG = "audit.log"


@dataclass(frozen=True)
class Place:
    """Where the control plane listens and how a program gets there."""

    address: IPv4Address
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    enter: tuple[str, ...] = ()  # the command that runs another one in the node's namespaces

    @classmethod
    def on_this_machine(cls) -> "Place":
        """Loopback, at ports that nothing uses."""
        api_port, etcd_port, etcd_peer_port = free_ports(3)
        return cls(LOOPBACK, api_port, etcd_port, etcd_peer_port)

    @classmethod
    def in_namespaces(cls, address: IPv4Address, enter: Sequence[str]) -> "Place":
        """The node's address; its network namespace is empty, so the usual ports are free."""
        return cls(address, 6443, 2379, 2380, tuple(enter))

    @property
    def server(self) -> str:
        """The API server's address for clients."""
        return f"https://{self.address}:{self.api_port}"

    @property
    def is_node(self) -> bool:
        return bool(self.enter)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((str(LOOPBACK), 0))
        return [int(each.getsockname()[1]) for each in sockets]


class ControlPlane:
    """Starts the four programs; `admin_kubeconfig` is what a cluster administrator connects with.

    Args:
        folder: where certificates, data and logs go.
        processes: what starts the programs, and ends them.
        place: where they listen.
        audited_group: a group of users; what they ask of the API server is written to AUDIT_LOG. Empty: nobody's requests are.
    """

    def __init__(self, folder: Path, processes: Processes, place: Place, audited_group: str = "") -> None:
        self._folder = folder
        self._audited_group = audited_group
        self._processes = processes
        self._place = place
        self.authority = Authority(folder / "pki")
        admin = self.authority.client("kubernetes-admin", "system:masters")
        self.admin_kubeconfig = self.kubeconfig("admin", admin)

    def kubeconfig(self, name: str, user: KeyPair) -> Path:
        """A kubeconfig for `user` at this API server."""
        return self.authority.kubeconfig(self._folder / f"{name}.kubeconfig", self._place.server, user)

    def start_storage_and_api(self) -> None:
        """Start etcd and the API server; the latter waits for the former by itself."""
        place = self._place
        hosts = ["localhost", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        serving = self.authority.server("kube-apiserver", [*hosts, LOOPBACK, place.address, KUBERNETES_SERVICE])
        storage = self.authority.server("etcd", ["localhost", LOOPBACK])
        self._spawn("etcd", self._etcd(storage))
        self._signing_key = self.authority.signing_key("service-accounts")
        self._spawn("kube-apiserver", self._api_server(serving))

    def start_controllers(self) -> None:
        """Start the controller manager and the scheduler."""
        manager = self.kubeconfig("kube-controller-manager", self.authority.client("system:kube-controller-manager"))
        scheduler = self.kubeconfig("kube-scheduler", self.authority.client("system:kube-scheduler"))
        self._spawn("kube-controller-manager", self._controller_manager(manager))
        self._spawn("kube-scheduler", self._scheduler(scheduler))

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        self._processes.spawn(name, [*self._place.enter, *command], environment=SELDOM_COLLECTED)

    def _etcd(self, serving: KeyPair) -> list[str]:
        clients, peers = f"https://127.0.0.1:{self._place.etcd_port}", f"http://127.0.0.1:{self._place.etcd_peer_port}"
        return [
            program("etcd"),
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            f"--cert-file={serving.certificate}",
            f"--key-file={serving.key}",
            f"--trusted-ca-file={self.authority.root.certificate}",
            "--client-cert-auth",
            "--unsafe-no-fsync",  # the data is thrown away with the cluster
            "--log-level=warn",
        ]

    def _api_server(self, serving: KeyPair) -> list[str]:
        place, root = self._place, self.authority.root
        kubelet_client = self.authority.client("kube-apiserver-kubelet-client", "system:masters")
        return [
            KUBERNETES.program("kube-apiserver"),
            f"--etcd-servers=https://127.0.0.1:{place.etcd_port}",
            f"--etcd-cafile={root.certificate}",
            f"--etcd-certfile={serving.certificate}",
            f"--etcd-keyfile={serving.key}",
            f"--bind-address={place.address}",
            f"--secure-port={place.api_port}",
            f"--advertise-address={place.address}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={root.certificate}",
            f"--kubelet-client-certificate={kubelet_client.certificate}",
            f"--kubelet-client-key={kubelet_client.key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={self._signing_key.public}",
            f"--service-account-signing-key-file={self._signing_key.private}",
            f"--service-cluster-ip-range={SERVICES}",
            # Loopback may not stand in the kubernetes Service's endpoints; without a node nobody reads them.
            f"--endpoint-reconciler-type={'lease' if place.is_node else 'none'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
            *(self._audit() if self._audited_group else []),
        ]

    def _audit(self) -> list[str]:
        """The flags for a log of who asked what, and whether it was granted; without what was said."""
        rules = [{"level": "Metadata", "userGroups": [self._audited_group]}, {"level": "None"}]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        file = self._folder / "audit-policy.json"
        file.write_text(json.dumps(policy), encoding="utf-8")
        return [f"--audit-policy-file={file}", f"--audit-log-path={self._folder / AUDIT_LOG}"]

    def _controller_manager(self, kubeconfig: Path) -> list[str]:
        return [
            KUBERNETES.program("kube-controller-manager"),
            f"--kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={self._signing_key.private}",
            f"--root-ca-file={self.authority.root.certificate}",
            "--use-service-account-credentials=true",
            "--kube-api-qps=200",  # ten times the default: tests with a thousand jobs should wait for the operator, not for this
            "--kube-api-burst=400",
            "--leader-elect=false",
            "--secure-port=0",
        ]

    def _scheduler(self, kubeconfig: Path) -> list[str]:
        return [KUBERNETES.program("kube-scheduler"), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]
