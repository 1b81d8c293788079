"""`make images`: builds the operator's and the trainer's image with docker, podman or buildah.

`python -m docker.build --help` names the options.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewardfl_api import __version__
from tests.cluster.machine import ensure_programs
from tests.cluster.paths import REPOSITORY, find_program
from tests.cluster.report import ClusterError, say

from . import base, sbom, settings, tools, workplace
from .tools import Recipe, Tool

IMAGES = ("operator", "trainer")
LOCAL = "local"


@dataclass(frozen=True)
class Built:
    """An image that was built.

    Attributes:
        name: its full name with the version as its tag.
        digest: of its configuration, and so of all that is in it.
        seconds: how long the build took.
    """

    name: str
    digest: str
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line asks for; 0 when all are built."""
    parser = argparse.ArgumentParser(prog="make images", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="image", help=f"which ({', '.join(IMAGES)}); default: all")
    parser.add_argument("--base", default="", help="`local`: make the base with debootstrap; else the image to build on")
    parser.add_argument("--tool", default="", help=f"one of {', '.join(tools.NAMES)}; default: the first that works")
    parser.add_argument("--registry", default="", help="put before the names, e.g. registry.example.com/team")
    parser.add_argument("--source", default="", help="address of the source code, for the images' labels")
    parser.add_argument("--sbom", type=Path, help="also write what is in each image as NAME.cdx.json into this folder")
    parser.add_argument("--save", type=Path, help="also write each image as NAME.tar into this folder")
    given = parser.parse_args(arguments)
    try:
        unknown = sorted({*given.images} - {*IMAGES})
        if unknown:
            raise ClusterError(f"there is no image {', '.join(unknown)}: the images are {', '.join(IMAGES)}")
        tool = ready_tool(given.tool, given.base)
        for image in given.images or IMAGES:
            built = build(image, tool, base=given.base, registry=given.registry, source=given.source)
            say(f"{built.name} is built: {built.seconds:.0f} s, sha256:{built.digest[:12]}")
            if given.sbom:
                sbom.write(tool, built.name, built.digest, given.sbom / f"rewardfl-{image}.cdx.json")
            if given.save:
                given.save.mkdir(parents=True, exist_ok=True)
                tool.save(built.name, given.save / f"rewardfl-{image}.tar")
    except ClusterError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


def ready_tool(wanted: str, base_name: str) -> Tool:
    """Return the tool to build with. BASE=local installs buildah where none is there."""
    try:
        return tools.choose(wanted)
    except ClusterError:
        if base_name != LOCAL or wanted not in ("", "buildah"):
            raise
    ensure_programs({"buildah": "buildah"})
    return tools.choose("buildah")


def build(image: str, tool: Tool, *, base: str = "", registry: str = "", source: str = "") -> Built:
    """Build `image` (operator or trainer) with the settings of this machine lent to the steps that install packages.

    Raises:
        ClusterError: it cannot be built.
    """
    start = time.monotonic()
    labels = {"version": __version__, "revision": revision(), "source": source}
    told = {f"org.opencontainers.image.{name}": value for name, value in labels.items() if value}
    name = full_name(image, registry)
    file = REPOSITORY / "docker" / f"{image}.Dockerfile"
    with workplace.enter(tool) as place:
        base_name = _base(tool, base)
        arguments = {"BASE": base_name} if base_name else {}
        lent = settings.write(place.settings, with_apt=base == LOCAL)
        tool.build(Recipe(file, REPOSITORY, (name,), arguments, told, lent), place.temporary, place.lock)
        return Built(name, tool.digest(name), time.monotonic() - start)


def full_name(image: str, registry: str = "") -> str:
    """The name of `image` with its version; `registry` stands before it, with or without a slash at its end."""
    before = f"{registry.rstrip('/')}/" if registry else ""
    return f"{before}rewardfl-{image}:{__version__}"


def revision() -> str:
    """The commit that is checked out, `-dirty` when files differ from it; empty outside of a clone."""
    if find_program("git") is None:
        return ""
    described = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    found = subprocess.run(described, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def _base(tool: Tool, wanted: str) -> str:
    """The image to build on; empty for the Dockerfile's own."""
    return base.ensure(tool) if wanted == LOCAL else wanted


if __name__ == "__main__":
    sys.exit(main())
