"""The images of a release: built by docker/build.py of the release's own commit, and written as OCI archives."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO

from docker import build
from docker.tools import Tool
from tests.cluster.report import run, say

from .errors import ReleaseError

_SAVE_SECONDS = 3600
_SOURCES = ("crds", "operator", "trainer", ".")


def make(tree: Path, folder: Path, version: str, images: Sequence[str], building: Sequence[str]) -> dict[str, str]:
    """Build images of what the work tree `tree` holds; archives and bills of materials go into `folder`.

    Args:
        tree: a checkout of the commit that is released.
        folder: where the files go.
        version: the images' tag.
        images: which.
        building: options of docker/build.py.

    Returns:
        The digest of each image's manifest, as every registry that gets the archive shows it.
    """
    python(tree, "-m", "docker.build", *images, "--sbom", str(folder), *building)
    options = dict(option.removeprefix("--").split("=", 1) for option in building)
    tool = build.ready_tool(options.get("tool", ""), options.get("base", ""))
    digests = {}
    for image in images:
        archive = archive_of(folder, image, version)
        save(tool, f"rewardfl-{image}:{version}", archive)
        digests[image] = manifest_digest(archive)
        say(f"{archive.name}: {digests[image]}")
    return digests


def archive_of(folder: Path, image: str, version: str) -> Path:
    """Where an image's archive lies."""
    return folder / f"rewardfl-{image}-{version}.oci.tar"


def save(tool: Tool, image: str, archive: Path) -> None:
    """Write an image as an OCI archive. Its layers are compressed now, so that no registry's copy of it is another one."""
    commands = {
        "buildah": ["buildah", "push", "--quiet", image, f"oci-archive:{archive}:{image}"],
        "podman": ["podman", "save", "--quiet", "--format=oci-archive", f"--output={archive}", image],
        "docker": ["docker", "save", f"--output={archive}", image],  # an OCI archive as well, from version 25 on
    }
    run(commands[tool.name], timeout_seconds=_SAVE_SECONDS)


def manifest_digest(archive: Path) -> str:
    """The digest of the image in an OCI archive: of its manifest, which names all else by digest.

    Raises:
        ReleaseError: it is no OCI archive of one image, or damaged.
    """
    with tarfile.open(archive) as members:
        index = json.loads(_read(members, "index.json", archive))
        if len(index["manifests"]) != 1:
            raise ReleaseError(f"{archive.name}: holds {len(index['manifests'])} images: must be one")
        digest = str(index["manifests"][0]["digest"])
        algorithm, _, value = digest.partition(":")
        found = sha256(_read(members, f"blobs/{algorithm}/{value}", archive)).hexdigest()
    if found != value:
        raise ReleaseError(f"{archive.name}: its manifest is {found}, its index says {value}: damaged; make it again")
    return digest


def python(tree: Path, *arguments: str) -> None:
    """Run this Python on the sources of `tree`.

    Raises:
        ReleaseError: it failed; what it said has been shown.
    """
    paths = os.pathsep.join(str(tree / source) for source in _SOURCES)
    environment: Mapping[str, str] = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"`python {' '.join(arguments[:2])}` failed: see above")


def _read(members: tarfile.TarFile, name: str, archive: Path) -> bytes:
    try:
        file: IO[bytes] | None = members.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ReleaseError(f"{archive.name}: has no {name}, so it is no OCI archive (docker writes them from version 25 on)")
    return file.read()
