"""docker, podman and buildah behind the few calls that building an image takes. Knows nothing of what is in the images.

All three understand the same build options; what differs is how a root file system becomes an image, how an image is looked
at, and how it is written into a file.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.paths import find_program
from tests.cluster.report import ClusterError, run

NAMES = ("docker", "podman", "buildah")
"""In the order in which they are tried."""
_PROBE = {"docker": ("version", "--format", "{{.Server.Version}}"), "podman": ("info",), "buildah": ("info",)}
_PROBE_SECONDS = 20
_SAVE_SECONDS = 1200
_RUN_SECONDS = 120
# The network is this machine's: its package mirror may be on the loopback address.
_BUILDAH_OPTIONS = ("--layers", "--force-rm", "--network=host")


@dataclass(frozen=True)
class Recipe:
    """One build.

    Attributes:
        file: the Dockerfile.
        context: the folder whose files it may copy.
        tags: the names that the image gets.
        arguments: build arguments.
        labels: the image's; buildah 1.28 would take a build argument in a LABEL step from its cache with an older value.
        secrets: files by name, readable in the steps that name them and nowhere afterwards.
    """

    file: Path
    context: Path
    tags: tuple[str, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)

    def options(self) -> list[str]:
        """The options of `build`, the same for all three."""
        options = ["--file", str(self.file)]
        options += [part for tag in self.tags for part in ("--tag", tag)]
        options += [part for name, value in self.arguments.items() for part in ("--build-arg", f"{name}={value}")]
        options += [part for name, value in self.labels.items() for part in ("--label", f"{name}={value}")]
        return options + [part for name, path in self.secrets.items() for part in ("--secret", f"id={name},src={path}")]


@dataclass(frozen=True)
class Tool:
    """One of the three."""

    name: str

    def build_command(self, recipe: Recipe) -> list[str]:
        """The command line that builds `recipe`."""
        own = (*_isolation(), *_BUILDAH_OPTIONS) if self.name == "buildah" else ()
        return [self.name, "build", *own, *recipe.options(), str(recipe.context)]

    def build(self, recipe: Recipe, temporary: Path, lock: int) -> None:
        """Build an image; what the steps say goes to standard output.

        Args:
            recipe: of what.
            temporary: a folder for what the tool needs for a while, as large as the image's largest layer.
            lock: a file descriptor that the tool inherits.

        Raises:
            ClusterError: a step failed.
        """
        environment = os.environ | {"DOCKER_BUILDKIT": "1", "TMPDIR": str(temporary)}
        done = subprocess.run(self.build_command(recipe), env=environment, pass_fds=(lock,), check=False)
        if done.returncode != 0:
            raise ClusterError(f"{self.name} could not build {recipe.file.name}: see above")

    def import_root(self, archive: Path, image: str) -> None:
        """Make an image of one layer of a tar of a root file system."""
        if self.name != "buildah":
            run([self.name, "import", str(archive), image], timeout_seconds=_SAVE_SECONDS)
            return
        container = run(["buildah", "from", "scratch"]).strip()
        try:
            run(["buildah", "add", "--quiet", container, str(archive), "/"], timeout_seconds=_SAVE_SECONDS)
            run(["buildah", "commit", "--quiet", container, image], timeout_seconds=_SAVE_SECONDS)
        finally:
            run(["buildah", "rm", container])

    def has(self, image: str) -> bool:
        """Whether the image is there."""
        try:
            self._inspect(image)
        except ClusterError:
            return False
        return True

    def digest(self, image: str) -> str:
        """The image's identity: the digest of its configuration, and so of all its layers."""
        found = self._inspect(image)
        return str(found["FromImageID"] if self.name == "buildah" else found["Id"]).removeprefix("sha256:")

    def save(self, image: str, archive: Path) -> None:
        """Write the image into a docker-archive tar, as `docker load` and `ctr images import` take it."""
        if self.name == "buildah":
            command = ["buildah", "push", "--quiet", image, f"docker-archive:{archive}:{image}"]
        else:
            command = [self.name, "save", "--output", str(archive), image]
        run(command, timeout_seconds=_SAVE_SECONDS)

    def run(self, image: str, command: Sequence[str]) -> str:
        """Run a program in the image and return what it printed."""
        if self.name != "buildah":
            return run([self.name, "run", "--rm", "--entrypoint", command[0], image, *command[1:]], timeout_seconds=_RUN_SECONDS)
        container = run(["buildah", "from", "--pull-never", image]).strip()
        try:
            return run(["buildah", "run", *_isolation(), container, "--", *command], timeout_seconds=_RUN_SECONDS)
        finally:
            run(["buildah", "rm", container])

    def containers(self) -> set[str]:
        """The working containers that there are; only buildah keeps those of a build where others see them."""
        if self.name != "buildah":
            return set()
        return {str(found["id"]) for found in json.loads(run(["buildah", "containers", "--json"])) or () if found["builder"]}

    def remove_containers(self, ids: set[str]) -> None:
        """Remove working containers, with their mounts."""
        run(["buildah", "rm", *sorted(ids)])

    def _inspect(self, image: str) -> dict[str, Any]:
        kind = ["--type", "image"] if self.name == "buildah" else []
        found = json.loads(run([self.name, "inspect", *kind, image]))
        return dict(found[0] if isinstance(found, list) else found)


def choose(wanted: str = "", candidates: Sequence[str] = NAMES) -> Tool:
    """Return the tool that is asked for, or the first one that works: a docker client without an engine does not.

    Raises:
        ClusterError: there is none; the message says what was found of each.
    """
    found = {name: _state(name) for name in ([wanted] if wanted else candidates)}
    usable = [name for name, problem in found.items() if not problem]
    if not usable:
        listed = "; ".join(f"{name} {problem}" for name, problem in found.items())
        raise ClusterError(f"nothing here builds images: {listed}. Install one of them, for example `apt-get install buildah`")
    return Tool(usable[0])


def _isolation() -> tuple[str, str]:
    """How buildah runs steps: in a mere chroot, unless told otherwise, since root in a container has no rights for more."""
    return ("--isolation", os.environ.get("BUILDAH_ISOLATION", "chroot"))


def _state(name: str) -> str:
    """What keeps `name` from being used; empty when nothing does."""
    if find_program(name) is None:
        return "is not installed"
    try:
        run([name, *_PROBE.get(name, ("version",))], timeout_seconds=_PROBE_SECONDS)
    except ClusterError as error:
        return f"does not work ({str(error).splitlines()[-1][-200:]})"
    return ""
