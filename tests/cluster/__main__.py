"""The command line of the local cluster: `python -m tests.cluster build|up|down|status|kubeconfig`."""

import argparse
import signal
import sys
from types import FrameType

from . import slots
from .build import KUEUE, ensure_built
from .local_cluster import LocalCluster, kubectl_command
from .machine import ensure_packages
from .processes import Processes
from .report import ClusterError, run, say


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it did what was asked, 1 when not, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _COMMANDS[options.command](options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted; everything that was started is stopped")
        return 130


def _build(options: argparse.Namespace) -> int:
    ensure_packages(control_plane_only=options.control_plane_only)
    ensure_built(KUEUE)
    return 0


def _up(options: argparse.Namespace) -> int:
    slots.clear_abandoned(detached=True)
    cluster = LocalCluster.start(control_plane_only=options.control_plane_only, detached=True)
    print(cluster.kubeconfig)
    return 0


def _down(_: argparse.Namespace) -> int:
    cleared = slots.clear_abandoned(detached=True)
    for slot, owner in slots.owners().items():
        say(f"slot {slot:03d} belongs to process {owner}, which still runs and was left alone")
    say(f"cleared {cleared}")
    return 0


def _status(_: argparse.Namespace) -> int:
    for slot, owner in slots.owners().items():
        print(f"slot {slot:03d}: owned by process {owner}")
    folder = slots.find_detached()
    if folder is None:
        print("no cluster was left running by `up`")
        return 1
    processes = Processes(folder)
    print(f"cluster in {folder}")
    for name in processes.names():
        print(f"  {name:25} {'running' if processes.is_running(name) else 'ENDED'}")
    print(run(kubectl_command(folder / "admin.kubeconfig", ["get", "nodes,pods", "--all-namespaces", "--output=wide"])), end="")
    return 0


def _kubeconfig(_: argparse.Namespace) -> int:
    folder = slots.find_detached()
    if folder is None:
        raise ClusterError("no cluster is running: start one with `python -m tests.cluster up`")
    print(folder / "admin.kubeconfig")
    return 0


_COMMANDS = {"build": _build, "up": _up, "down": _down, "status": _status, "kubeconfig": _kubeconfig}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description="A real local Kubernetes without a container engine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("build", "install the packages and build the programs that are missing"),
        ("up", "replace the cluster that an earlier `up` left by a new one and leave it running"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--control-plane-only", action="store_true", help="no node: no root and no containerd needed")
    commands.add_parser("down", help="stop that cluster, and clear what killed sessions left")
    commands.add_parser("status", help="say what runs")
    commands.add_parser("kubeconfig", help="print the path of its kubeconfig")
    return parser


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
