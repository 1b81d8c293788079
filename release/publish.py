"""`make publish VERSION=x`: pushes what `make release` has made to a registry. A person runs it, who is logged in there.

Nothing is built or changed: archives go up as they lie in dist/, and the digests that the registry shows are those that the
chart names, which is checked. What is there already is left; another image or chart of the same version is never replaced.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from docker.build import IMAGES
from tests.cluster.paths import REPOSITORY, find_program
from tests.cluster.report import ClusterError, run, say

from . import chart, images, sums
from .errors import ReleaseError

CHARTS = "charts"
"""Below it, in the registry, lies the chart."""
_PUSH_SECONDS = 7200
_ABSENT = ("manifest unknown", "name unknown", "not found")
"""What registries say of a tag or repository that they do not have."""


@dataclass(frozen=True)
class Registry:
    """Where to publish.

    Attributes:
        address: host, and folder in it, such as registry.example.com/team.
        plain_http: no TLS; for a registry on this machine.
    """

    address: str
    plain_http: bool = False

    def digest(self, reference: str) -> str | None:
        """The digest of what the registry has under a name; None when it has nothing.

        Raises:
            ClusterError: it does not answer, or refuses.
        """
        verify = f"--tls-verify={str(not self.plain_http).lower()}"
        command = ["skopeo", "inspect", verify, "--format={{.Digest}}", f"docker://{self.address}/{reference}"]
        try:
            return run(command, timeout_seconds=_PUSH_SECONDS).strip()
        except ClusterError as error:
            if any(words in str(error) for words in _ABSENT):
                return None
            raise

    def push_image(self, archive: Path, reference: str) -> None:
        """Push an archive as it is: with its digest, or not at all."""
        verify = f"--dest-tls-verify={str(not self.plain_http).lower()}"
        command = ["skopeo", "copy", "--quiet", "--all", "--preserve-digests", verify, f"oci-archive:{archive}"]
        run([*command, f"docker://{self.address}/{reference}"], timeout_seconds=_PUSH_SECONDS)

    def push_chart(self, archive: Path) -> None:
        """Push the chart's archive."""
        run([chart.helm(), "push", str(archive), self._charts, *self._helm_options], timeout_seconds=_PUSH_SECONDS)

    def chart(self, version: str) -> bytes | None:
        """The chart's archive of a version; None when there is none."""
        with TemporaryDirectory(prefix="rewardfl-chart-") as folder:
            command = [chart.helm(), "pull", f"{self._charts}/rewardfl", f"--version={version}", f"--destination={folder}"]
            try:
                run([*command, *self._helm_options], timeout_seconds=_PUSH_SECONDS)
            except ClusterError as error:
                if any(words in str(error) for words in _ABSENT):
                    return None
                raise
            return (Path(folder) / f"rewardfl-{version}.tgz").read_bytes()

    @property
    def _charts(self) -> str:
        return f"oci://{self.address}/{CHARTS}"

    @property
    def _helm_options(self) -> list[str]:
        return ["--plain-http"] if self.plain_http else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish what the command line names; 0 when all of it is in the registry."""
    parser = argparse.ArgumentParser(prog="make publish", description=__doc__)
    parser.add_argument("version", help="a version that `make release` has made")
    parser.add_argument("--registry", default="", help="such as registry.example.com/team; default: what the chart says")
    parser.add_argument("--plain-http", action="store_true", help="without TLS: a registry on this machine")
    given = parser.parse_args(arguments)
    try:
        publish(REPOSITORY / "dist" / f"rewardfl-{given.version}", given.version, given.registry.strip("/"), given.plain_http)
    except (ReleaseError, ClusterError) as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    return 0


def publish(folder: Path, version: str, address: str = "", plain_http: bool = False) -> None:
    """Push both images, then the chart that names them.

    Raises:
        ReleaseError: the release is not whole, or the registry has another one of this version.
        ClusterError: a push failed. What was pushed stays; the same command goes on.
    """
    if not folder.is_dir():
        raise ReleaseError(f"VERSION={version}: there is no {folder}: run `make release VERSION={version}`")
    if find_program("skopeo") is None:
        raise ReleaseError("skopeo is not installed: install it, for example `apt-get install skopeo`")
    sums.check(folder)
    archive = folder / f"rewardfl-{version}.tgz"
    digests = checked_digests(folder, version)
    address = address or chart.images_in(archive)["operator"]["registry"]
    if not address:
        raise ReleaseError("REGISTRY is not given, and the chart names none: for example REGISTRY=registry.example.com/team")
    registry = Registry(address, plain_http)
    for image, digest in digests.items():
        _publish_image(registry, images.archive_of(folder, image, version), f"rewardfl-{image}:{version}", digest)
    _publish_chart(registry, archive, version)


def checked_digests(folder: Path, version: str) -> dict[str, str]:
    """Return the digest of each image, which archive and chart agree upon.

    Raises:
        ReleaseError: an image is missing (a trial), or the chart names another one.
    """
    named = chart.images_in(folder / f"rewardfl-{version}.tgz")
    missing = [image for image in IMAGES if not images.archive_of(folder, image, version).is_file()]
    if missing:
        raise ReleaseError(f"{folder.name}: a trial without the image {', '.join(missing)}: make the release with all of them")
    found = {image: images.manifest_digest(images.archive_of(folder, image, version)) for image in IMAGES}
    for image, digest in found.items():
        if named[image]["digest"] != digest:
            raise ReleaseError(f"{folder.name}: the chart names {named[image]['digest']} as {image}, the archive is {digest}")
    return found


def _publish_image(registry: Registry, archive: Path, reference: str, digest: str) -> None:
    there = registry.digest(reference)
    if there not in (None, digest):
        raise ReleaseError(f"{registry.address}/{reference} is {there} already, not {digest}: a version is published once")
    if there is None:
        registry.push_image(archive, reference)
        there = registry.digest(f"{reference.partition(':')[0]}@{digest}")
    if there != digest:
        raise ReleaseError(f"{registry.address}/{reference}: the registry shows {there}, the chart names {digest}")
    say(f"{registry.address}/{reference} is {digest}")


def _publish_chart(registry: Registry, archive: Path, version: str) -> None:
    there = registry.chart(version)
    if there is None:
        registry.push_chart(archive)
        there = registry.chart(version)
    if there != archive.read_bytes():
        raise ReleaseError(f"{registry.address}/{CHARTS}/rewardfl:{version} is another chart: a version is published once")
    say(f"oci://{registry.address}/{CHARTS}/rewardfl --version {version}")


if __name__ == "__main__":
    sys.exit(main())
