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
    OVERLAY_SNAPSHOTTER,
    cni_configuration,
    containerd_configuration,
    core_dns_configuration,
    core_dns_roles,
    kube_proxy_configuration,
    kubelet_configuration,
    snapshotter,
)
from .paths import program
from .processes import children_of
from .report import ClusterError, run, wait_until
from .slots import Slot
from .unpacked import UnpackedImage, snapshot_folder, write_layout

NODE_NAME = "rewardfl-local"
_SOCKET = "/run/containerd/containerd.sock"
_READY_SECONDS = 60
_IMPORT_SECONDS = 900

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

# As long as a buildah runs, its store is mounted on itself, and no link leads from one mount into another, be they of one file
# system. In a mount namespace of its own such mounts are taken off; nobody else sees that.
_LINK = """
mount_of() { findmnt --noheadings --output TARGET --target "$1"; }
while mount=$(mount_of "$0"); [ "$mount" != / ] && [ "$mount" != "$(mount_of "$1")" ]; do umount --lazy "$mount"; done
exec cp --archive --link "$0/." "$1"
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
        printed = run([*self._ctr(), "images", "import", *names, str(archive)], timeout_seconds=_IMPORT_SECONDS)
        return [line.split()[1] for line in printed.splitlines() if line.startswith("unpacking ")]

    def can_link(self, image: UnpackedImage) -> bool:
        """Whether the files of the image's layers can be the node's too: one file system, and snapshots made of such folders."""
        own = self._folder.stat().st_dev
        return snapshotter(self._folder) == OVERLAY_SNAPSHOTTER and all(layer.stat().st_dev == own for layer in image.layers)

    def link_image(self, image: UnpackedImage) -> None:
        """Take over an image by hard links to its layers' files. Nobody writes to them: a container's changes are kept apart."""
        there = {line.split()[0] for line in run([*self._ctr(), "snapshots", "list"]).splitlines()}
        parent: list[str] = []
        for chain_id, layer in zip(image.chain_ids, image.layers, strict=True):
            if chain_id not in there:
                self._link_layer(layer, chain_id, parent)
            parent = [chain_id]
        layout = self._folder / "image-layout.tar"
        write_layout(image, layout)
        self.import_image(layout)

    def _link_layer(self, layer: Path, chain_id: str, parent: list[str]) -> None:
        key = f"linking-{chain_id}"
        mounts = json.loads(run([*self._ctr(), "snapshots", "prepare", "--mounts", key, *parent]))
        link = [program("unshare"), "--mount", "--propagation", "private", program("sh"), "-e", "-c", _LINK, str(layer)]
        run([*link, str(snapshot_folder(mounts))], timeout_seconds=_IMPORT_SECONDS)
        run([*self._ctr(), "snapshots", "commit", chain_id, key], timeout_seconds=_IMPORT_SECONDS)

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
