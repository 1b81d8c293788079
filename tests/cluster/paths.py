"""Where things lie: the repository, the cache of built programs, the state of running clusters, programs of the machine."""

import os
import shutil
import sys
from pathlib import Path

from .report import ClusterError

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent.parent

# Debian puts the CNI plugins in the first, the plugins' own releases in the second.
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def cache_root() -> Path:
    """The folder that survives clusters and clones: built programs, each below its name, version and recipe hash."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rewardfl"


def state_root() -> Path:
    """The folder below which each running cluster or S3 server keeps its state.

    For root it is one fixed place, so that any later session finds what a killed one left, whatever its clone or home.
    """
    if os.geteuid() == 0:
        return Path("/var/cache/rewardfl-cluster")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "rewardfl-cluster"


def find_program(name: str) -> Path | None:
    """The program `name` of this Python environment or of the machine, None where neither has it."""
    folders = [str(Path(sys.prefix) / "bin"), *os.environ.get("PATH", os.defpath).split(os.pathsep), *_SYSTEM_FOLDERS]
    found = shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


def program(name: str) -> str:
    """The path of the program `name`; ClusterError names the remedy where it is missing."""
    found = find_program(name)
    if found is None:
        raise ClusterError(
            f"`{name}` is not installed: run `python -m tests.cluster build` (as root), or `uv pip sync` for weed and etcd"
        )
    return str(found)


def cni_folder() -> Path | None:
    """The folder with the CNI plugins that the node needs, None where the machine has none."""
    needed = ("bridge", "host-local", "loopback")
    return next((folder for folder in _CNI_FOLDERS if all((folder / plugin).is_file() for plugin in needed)), None)
