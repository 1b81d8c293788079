"""The addresses of a cluster and the one network interface that it has outside its own network namespace.

The node's network namespace holds a bridge with the node and its pods on it. One veth pair joins the machine to that
bridge; it vanishes with the namespace. Nothing else of the machine's network is touched: no nftables, no forwarding.
"""

import json
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

from .paths import find_program, program
from .report import ClusterError, run, wait_until

BRIDGE = "rfl0"
# Fixed, because a bridge otherwise takes the lowest of its ports' addresses: it would change with every pod, and the
# machine would send to the one that it remembers.
BRIDGE_MAC = "02:72:66:6c:00:01"
SERVICES = IPv4Network("10.96.0.0/16")
KUBERNETES_SERVICE = SERVICES[1]
_NETWORK_VARIABLE = "REWARDFL_CLUSTER_NETWORK"
_DEFAULT_NETWORK = "10.213.0.0/16"
# A route as wide as a default route or a company's 10.0.0.0/8 does not say that an address in it is in use here.
_NARROW_PREFIX = 16


@dataclass(frozen=True)
class Addresses:
    """A /24 for one cluster: the machine, the node, then the pods."""

    subnet: IPv4Network

    @property
    def machine(self) -> IPv4Address:
        """The machine's own address on the pods' bridge."""
        return self.subnet[1]

    @property
    def node(self) -> IPv4Address:
        """The node's address, which is also the bridge's, the pods' gateway and their name server."""
        return self.subnet[2]

    @property
    def first_pod(self) -> IPv4Address:
        return self.subnet[10]

    @property
    def last_pod(self) -> IPv4Address:
        return self.subnet[254]


def addresses(index: int) -> Addresses:
    """The addresses of slot `index`: its /24 of the /16 that REWARDFL_CLUSTER_NETWORK names."""
    text = os.environ.get(_NETWORK_VARIABLE, _DEFAULT_NETWORK)
    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise ClusterError(f"{_NETWORK_VARIABLE}={text}: {error}; set it to a /16 such as 172.31.0.0/16") from error
    if network.prefixlen != _NARROW_PREFIX or network.overlaps(SERVICES):
        raise ClusterError(f"{_NETWORK_VARIABLE}={text}: must be a /16 that does not overlap {SERVICES}")
    return Addresses(IPv4Network((int(network.network_address) + (index << 8), 24)))


def is_free(index: int) -> bool:
    """Whether the machine routes nothing narrow into the slot's subnet and lacks an interface of its name."""
    subnet = addresses(index).subnet
    routes = json.loads(run([program("ip"), "-j", "-4", "route", "show", "table", "all"]))
    used = [network for route in routes if (network := _narrow_network(route)) is not None and network.overlaps(subnet)]
    return not used and not _interface_exists(index)


def join(index: int, node_pid: int) -> None:
    """Lay the veth pair from the machine to the bridge in the network namespace of process `node_pid`."""
    ip, outside = program("ip"), _interface(index)
    run([ip, "link", "add", outside, "type", "veth", "peer", "name", "uplink", "netns", str(node_pid)])
    run([ip, "address", "add", f"{addresses(index).machine}/24", "dev", outside])
    run([ip, "link", "set", outside, "up"])


def remove(index: int) -> None:
    """Remove the machine's end of the veth pair; the kernel may be doing so already, behind the namespace's end."""
    if find_program("ip") is None or not _interface_exists(index):
        return
    run([program("sh"), "-c", f"{program('ip')} link delete {_interface(index)} 2>/dev/null; exit 0"])
    wait_until(lambda: not _interface_exists(index), f"interface {_interface(index)} goes", timeout_seconds=10)


def _interface(index: int) -> str:
    return f"rewardfl-{index:03d}"


def _interface_exists(index: int) -> bool:
    return os.path.exists(f"/sys/class/net/{_interface(index)}")  # noqa: PTH110 - a link into /sys that may dangle


def _narrow_network(route: dict[str, Any]) -> IPv4Network | None:
    if route["dst"] == "default":
        return None
    network = ip_network(route["dst"])
    return network if isinstance(network, IPv4Network) and network.prefixlen >= _NARROW_PREFIX else None
