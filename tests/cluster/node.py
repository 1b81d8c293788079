"""One Kubernetes node in namespaces of its own: containerd, kubelet, kube-proxy (nftables) and CoreDNS.

The node has its own PID, mount and network namespace. Its process 1 is the pause program: when that ends, the kernel
ends all other processes in it and drops their mounts, interfaces, addresses and nftables tables, so however a session
ends, nothing but empty cgroups and a state folder can be left of it (decision 0010).
"""

import json
from pathlib import Path

from . import cgroups, network
from .build import COREDNS, KUBERNETES, PAUSE
from .control_plane import ControlPlane
from .host_image import write_host_image
from .node_configuration import (
    cni_configuration,
    containerd_configuration,
    core_dns_configuration,
    core_dns_roles,
    kube_proxy_configuration,
    kubelet_configuration,
)
from .paths import program
from .processes import children_of
from .report import ClusterError, run, wait_until
from .slots import Slot

NODE_NAME = "rewardfl-local"
_SOCKET = "/run/containerd/containerd.sock"
_READY_SECONDS = 60

# Runs inside the namespaces. /run and /var/log become the node's own folders; /var/lib stays readable but is written
# to memory, because kubelet and CNI keep a few files at fixed places below it. Services need a route, so that the API
# server's own calls get as far as kube-proxy's rules; there is none to the outside, so that a pod's call there fails at once.
_PREPARE = """
mount --make-rshared /
mount --bind "$0/run" /run
mount --bind "$0/log" /var/log
mount -t tmpfs -o size=64m tmpfs "$0/lib"
mkdir "$0/lib/upper" "$0/lib/work"
mount -t overlay -o "lowerdir=/var/lib,upperdir=$0/lib/upper,workdir=$0/lib/work" overlay /var/lib
ip link set lo up
ip link add "$1" address "$4" type bridge
ip address add "$2/24" dev "$1"
ip link set "$1" up
ip route add "$3" dev "$1"
"""


class Node:
    """The node of a slot. `enter` is the command prefix that runs a program inside it."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._folder = slot.folder
        self.addresses = network.addresses(slot.index)
        self.enter: tuple[str, ...] = ()

    def create(self, *, lifeline: bool) -> None:
        """Make the cgroup, the namespaces and the network; with `lifeline` all of it ends when this process does."""
        self._slot.claim_node()
        cgroups.create(self._slot.index)
        for name in ("run", "log", "lib"):
            (self._folder / name).mkdir()
        namespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave"]
        init = [PAUSE.program("pause"), *(["-lifeline"] if lifeline else [])]
        self._slot.processes.spawn("node", [program("unshare"), *namespaces, *init], lifeline=lifeline)
        pid = self._init_pid()
        self.enter = (program("nsenter"), f"--target={pid}", "--mount", "--net", "--pid", "--")
        arguments = [str(self._folder), network.BRIDGE, str(self.addresses.node), str(network.SERVICES), network.BRIDGE_MAC]
        run([*self.enter, program("sh"), "-e", "-c", _PREPARE, *arguments])
        network.join(self._slot.index, pid)
        run([*self.enter, program("ip"), "link", "set", "uplink", "master", network.BRIDGE, "up"])

    def start_runtime(self) -> None:
        """Start containerd and give it the one image that the node cannot do without."""
        configuration = self._folder / "containerd.toml"
        configuration.write_text(containerd_configuration(self._folder))
        (self._folder / "cni").mkdir()
        (self._folder / "cni" / "rewardfl.conflist").write_text(json.dumps(cni_configuration(self.addresses), indent=1))
        self._spawn(
            "containerd", [program("containerd"), "--config", str(configuration), "--address", _SOCKET, "--log-level", "warn"]
        )
        archive = self._folder / "host-image.tar"
        write_host_image(archive)
        wait_until(self._runtime_answers, "containerd answers", timeout_seconds=_READY_SECONDS)
        self.import_image(archive)

    def import_image(self, archive: Path, repository: str = "") -> list[str]:
        """Import a docker-archive or OCI tar; returns the names of its images, or `repository` with their digests."""
        names = ["--digests", "--base-name", repository] if repository else []
        printed = run([*self._ctr(), "images", "import", *names, str(archive)], timeout_seconds=900)
        return [line.split()[1] for line in printed.splitlines() if line.startswith("unpacking ")]

    def start_kubernetes(self, control_plane: ControlPlane) -> None:
        """Start kubelet, kube-proxy and CoreDNS, each with a certificate of its own."""
        authority = control_plane.authority
        kubelet = control_plane.kubeconfig("kubelet", authority.client(f"system:node:{NODE_NAME}", "system:nodes"))
        proxy = control_plane.kubeconfig("kube-proxy", authority.client("system:kube-proxy"))
        dns = control_plane.kubeconfig("coredns", authority.client("system:coredns"))
        self._start_kubelet(kubelet, authority.root.certificate)
        proxy_configuration = self._write("kube-proxy.json", json.dumps(kube_proxy_configuration(proxy)))
        self._spawn(
            "kube-proxy",
            [KUBERNETES.program("kube-proxy"), f"--config={proxy_configuration}", f"--hostname-override={NODE_NAME}"],
        )
        corefile = self._write("Corefile", core_dns_configuration(self.addresses.node, dns))
        self._spawn("coredns", [COREDNS.program("coredns"), "-conf", str(corefile)])

    def roles(self) -> str:
        """The roles that CoreDNS needs, as JSON for `kubectl apply`."""
        return json.dumps(core_dns_roles())

    def _start_kubelet(self, kubeconfig: Path, authority: Path) -> None:
        resolver = self._write("resolv.conf", "")  # pods get CoreDNS; nothing of the machine's resolver
        configuration = kubelet_configuration(
            self._folder, self.addresses.node, cgroups.name(self._slot.index), authority, resolver
        )
        path = self._write("kubelet.json", json.dumps(configuration, indent=1))
        command = [KUBERNETES.program("kubelet"), f"--config={path}", f"--kubeconfig={kubeconfig}"]
        command += [f"--root-dir={self._folder / 'kubelet'}", f"--cert-dir={self._folder / 'kubelet-pki'}"]
        command += [f"--hostname-override={NODE_NAME}", f"--node-ip={self.addresses.node}"]
        self._spawn("kubelet", command)

    def _spawn(self, name: str, command: list[str]) -> None:
        # One search path for all of them: containerd looks for runc and the CNI plugins for ip in it.
        self._slot.processes.spawn(
            name, [*self.enter, *command], environment={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        )

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        return path

    def _ctr(self) -> list[str]:
        return [*self.enter, program("ctr"), "--address", _SOCKET, "--namespace", "k8s.io"]

    def _runtime_answers(self) -> bool:
        self._slot.processes.require_running()
        try:
            run([*self._ctr(), "version"], timeout_seconds=5)
        except ClusterError:
            return False
        return True

    def _init_pid(self) -> int:
        """The pid, as the machine sees it, of process 1 of the node's PID namespace, once it has become the pause program."""
        unshare = self._slot.processes.stat("node")
        assert unshare is not None
        wait_until(
            lambda: _pause_below(unshare.pid) is not None, "the node's namespaces are made", timeout_seconds=10, poll_seconds=0.01
        )
        pid = _pause_below(unshare.pid)
        assert pid is not None
        return pid


def _pause_below(parent: int) -> int | None:
    return next((child.pid for child in children_of(parent) if child.name == "pause"), None)
