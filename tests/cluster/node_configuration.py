"""Configuration files of the node's programs, as pure functions; each setting that took finding says why it is there."""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from .host_image import HOST_IMAGE
from .network import BRIDGE, Addresses
from .paths import cni_folder

CLUSTER_DOMAIN = "cluster.local"
DNS_READY_PORT = 8181
OVERLAY_SNAPSHOTTER = "overlayfs"
_UNUSED_SNAPSHOTTERS = ("aufs", "btrfs", "devmapper", "zfs")


def containerd_configuration(folder: Path) -> str:
    """containerd's TOML."""
    return f"""
version = 2
root = "{folder}/containerd"
state = "/run/containerd"
disabled_plugins = [{", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in _UNUSED_SNAPSHOTTERS)}]

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{HOST_IMAGE}"
# Without CAP_SYS_RESOURCE runc may not lower a score and dies with "can't get final child's PID from pipe".
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter(folder)}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_folder()}"
conf_dir = "{folder}/cni"
"""


def snapshotter(folder: Path) -> str:
    """What keeps the images. A state folder that lies on an overlay itself (a container) cannot carry overlay snapshots."""
    return "native" if _is_on_overlay(folder) else OVERLAY_SNAPSHOTTER


def cni_configuration(addresses: Addresses) -> dict[str, Any]:
    """Pods on the node's bridge. This plugin enforces no NetworkPolicy."""
    pods = {
        "subnet": str(addresses.subnet),
        "rangeStart": str(addresses.first_pod),
        "rangeEnd": str(addresses.last_pod),
        "gateway": str(addresses.node),
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[pods]]},
    }
    return {"cniVersion": "0.4.0", "name": "rewardfl", "plugins": [bridge]}


def kubelet_configuration(folder: Path, address: IPv4Address, cgroup: str, authority: Path, resolver: Path) -> dict[str, Any]:
    """KubeletConfiguration: works on cgroup v1 and with swap, evicts nothing, deletes no image."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(address),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": dict.fromkeys(("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%"),
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "clusterDNS": [str(address)],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(resolver),
        "makeIPTablesUtilChains": False,
        "volumePluginDir": str(folder / "volume-plugins"),
        "healthzPort": 0,
    }


def kube_proxy_configuration(kubeconfig: Path) -> dict[str, Any]:
    """KubeProxyConfiguration: nftables, and no conntrack settings, which need rights that a container lacks.

    All Service traffic is masqueraded: two pods share one bridge, so without it the answer from a Service's pod would go
    straight to the asking pod, from an address that it never asked.
    """
    untouched = {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
        "udpTimeout": "0s",
        "udpStreamTimeout": "0s",
    }
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "nftables": {"masqueradeAll": True},
        "conntrack": untouched,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    }


def core_dns_configuration(address: IPv4Address, kubeconfig: Path) -> str:
    """The Corefile: the cluster's names, and "no such name" at once for all others, since pods reach only this machine."""
    return f"""
{CLUSTER_DOMAIN}:53 in-addr.arpa:53 {{
    bind {address}
    errors
    ready {address}:{DNS_READY_PORT}
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
}}
.:53 {{
    bind {address}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def core_dns_roles() -> dict[str, Any]:
    """The ClusterRole and its binding that let CoreDNS read Services and their endpoints."""
    name, group = "system:coredns", "rbac.authorization.k8s.io"
    readable = [("", ["endpoints", "services", "pods", "namespaces"]), ("discovery.k8s.io", ["endpointslices"])]
    role = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [{"apiGroups": [api], "resources": resources, "verbs": ["list", "watch"]} for api, resources in readable],
    }
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "User", "apiGroup": group, "name": name}],
    }
    return {"apiVersion": "v1", "kind": "List", "items": [role, binding]}


def _is_on_overlay(folder: Path) -> bool:
    """Whether `folder` lies on an overlay file system, by the longest mount point above it."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    above = [(len(fields[1]), fields[2]) for fields in mounts if folder.is_relative_to(fields[1])]
    return max(above)[1] == "overlay"
