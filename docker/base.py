"""`BASE=local`: a Debian with Python that stands in for the official image on a machine that reaches no image registry.

debootstrap makes it of the machine's own package mirror; its tar is kept in the cache. For trying the images out: what is
published is built from the official image, which is made anew for every security update.
"""

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.cluster.machine import ensure_programs
from tests.cluster.paths import cache_root, program
from tests.cluster.report import ClusterError, run, say

from .tools import Tool

SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3", "python3-venv")
_MIRROR = "http://deb.debian.org/debian"
_SECONDS = 1200
# What debootstrap takes over from the machine that it runs on, or needed only while it ran.
_LEFT_OUT = ("./dev/*", "./etc/hostname", "./etc/resolv.conf", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*")


def ensure(tool: Tool) -> str:
    """Make the base where it is missing, and give it to `tool`; returns its name.

    Raises:
        ClusterError: it cannot be made here.
    """
    archive = _archive()
    image = f"localhost/rewardfl-base:{archive.parent.name.removeprefix('base-')}"
    if not archive.is_file():
        _make(archive)
    if not tool.has(image):
        say(f"{image} from {archive}")
        tool.import_root(archive, image)
    return image


def _archive() -> Path:
    """Where the tar lies; its folder's name changes with what it is made of."""
    recipe = hashlib.sha256(repr((SUITE, _PACKAGES, _LEFT_OUT)).encode()).hexdigest()[:12]
    return cache_root() / f"base-{SUITE}-{recipe}" / "root.tar"


def _make(archive: Path) -> None:
    """Make the root file system beside its place and rename the finished one there, so an interrupted one does not count."""
    if os.geteuid() != 0:
        raise ClusterError("BASE=local needs root (debootstrap makes a root file system): run as root, or name an image as BASE")
    ensure_programs({"debootstrap": "debootstrap"})
    mirror = _mirror()
    say(f"debootstrap {SUITE} with {', '.join(_PACKAGES)}: a minute; kept in {archive.parent}")
    cache_root().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_root(), prefix=".base-") as half_done:
        root, tree = Path(half_done) / "root", Path(half_done) / "tree"
        tree.mkdir()
        bootstrap = [program("debootstrap"), "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
        run([*bootstrap, SUITE, str(root), mirror], timeout_seconds=_SECONDS)
        exclude = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
        pack = ["tar", "--create", "--numeric-owner", "--sort=name", *exclude, "--file", str(tree / "root.tar")]
        run([*pack, "--directory", str(root), "."], timeout_seconds=_SECONDS)
        tree.chmod(0o755)
        archive.parent.parent.mkdir(parents=True, exist_ok=True)
        try:
            tree.rename(archive.parent)
        except OSError:  # another process was quicker
            if not archive.is_file():
                raise


def _mirror() -> str:
    """The mirror that this machine's apt has for the suite."""
    listed = run([program("apt-get"), "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    pairs = (line.split(maxsplit=1) for line in listed.splitlines() if " " in line)
    return next((address for release, address in pairs if release == SUITE), _MIRROR)
