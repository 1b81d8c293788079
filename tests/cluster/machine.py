"""What the machine itself must bring: root, and programs from its own packages, installed where they are missing."""

import os
import subprocess
from collections.abc import Callable, Mapping

from .paths import cni_folder, find_program
from .report import ClusterError, run, say

# program -> Debian package that carries it
_NODE_PROGRAMS = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "findmnt": "util-linux",
    "mount": "mount",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
_CONTROL_PLANE_PROGRAMS = {"openssl": "openssl"}
_APT_SECONDS = 900


def missing_packages(*, control_plane_only: bool) -> list[str]:
    """The Debian packages that this machine lacks for the cluster."""
    wanted = _CONTROL_PLANE_PROGRAMS | ({} if control_plane_only else _NODE_PROGRAMS)
    missing = {package for name, package in wanted.items() if find_program(name) is None}
    if not control_plane_only and cni_folder() is None:
        missing.add("containernetworking-plugins")
    return sorted(missing)


def ensure_packages(*, control_plane_only: bool) -> None:
    """Install what the machine lacks for the cluster.

    Raises:
        ClusterError: it cannot be installed from here; the message is the command to run by hand.
    """
    _ensure(lambda: missing_packages(control_plane_only=control_plane_only))


def ensure_programs(packages: Mapping[str, str]) -> None:
    """Install the Debian packages of those programs that the machine lacks; `packages` names the package of each program.

    Raises:
        ClusterError: as `ensure_packages`.
    """
    _ensure(lambda: sorted({package for name, package in packages.items() if find_program(name) is None}))


def _ensure(find_missing: Callable[[], list[str]]) -> None:
    missing = find_missing()
    if not missing:
        return
    apt = find_program("apt-get")
    if apt is None or os.geteuid() != 0:
        raise ClusterError(
            f"this machine lacks packages: as root, run `apt-get install {' '.join(missing)}` or your system's equivalent"
        )
    say(f"installing Debian packages: {' '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([str(apt), "update", "-q"], env=environment, capture_output=True, timeout=_APT_SECONDS, check=False)
    install = ["env", "DEBIAN_FRONTEND=noninteractive", str(apt), "install", "-q", "-y", "--no-install-recommends", *missing]
    run(install, timeout_seconds=_APT_SECONDS)
    still_missing = find_missing()
    if still_missing:
        raise ClusterError(f"after `apt-get install` this machine still lacks {', '.join(still_missing)}")


def require_root() -> None:
    """Raise ClusterError unless this process may make namespaces, bridges and cgroups."""
    if os.geteuid() != 0:
        raise ClusterError("a node needs root (namespaces, cgroups, containerd): run as root, or use --control-plane-only")
