"""The chart of a release: the digests of its images by value, what has changed, and an archive that is the same each time."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from charts import generate
from tests.cluster.build import HELM
from tests.cluster.paths import find_program
from tests.cluster.report import run

from .changelog import Entry
from .errors import ReleaseError
from .versions import is_prerelease

_SECTIONS = {"operator": "image", "trainer": "trainer.image"}
"""Where values.yaml has each image."""
_KINDS = {"added", "changed", "deprecated", "removed", "fixed", "security"}
"""What Artifact Hub knows."""


@dataclass(frozen=True)
class Details:
    """What a release knows and the chart's sources do not.

    Attributes:
        version: the chart's and the operator's.
        digests: of the images' manifests, by image.
        registry: where the images will be; empty: who installs the chart says so.
        seconds: the time of all files in the archive, since 1970.
        changes: what this version changes.
    """

    version: str
    digests: Mapping[str, str]
    registry: str
    seconds: int
    changes: Sequence[Entry]


def package(source: Path, details: Details, folder: Path) -> Path:
    """Write the chart's archive into `folder`, as `helm package` would, and let helm look at it.

    Raises:
        ReleaseError: the chart is of another version.
        ClusterError: helm finds a fault.
    """
    with TemporaryDirectory(prefix="rewardfl-chart-") as scratch:
        chart = Path(scratch) / "rewardfl"
        copytree(source, chart)
        values = chart / "values.yaml"
        values.write_text(with_images(values.read_text(encoding="utf-8"), details), encoding="utf-8")
        about = chart / "Chart.yaml"
        about.write_text(described(about.read_text(encoding="utf-8"), details), encoding="utf-8")
        for path, text in generate.of_values(chart).items():
            path.write_text(text, encoding="utf-8")
        archive = folder / f"rewardfl-{details.version}.tgz"
        archive.write_bytes(packed(chart, details.seconds))
    run([helm(), "lint", "--strict", str(archive)])
    return archive


def with_images(values: str, details: Details) -> str:
    """Return values.yaml with the images of the release; every comment stays."""
    for image, digest in details.digests.items():
        values = with_value(values, f"{_SECTIONS[image]}.digest", digest)
    if details.registry:
        for section in _SECTIONS.values():
            values = with_value(values, f"{section}.registry", details.registry)
    return values


def with_value(text: str, path: str, value: str) -> str:
    """Return the YAML `text` in which the text at `path` is `value`; nothing else is touched."""
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in path.split("."):
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((child for key, child in entries if key.value == name), None)
    if not isinstance(node, yaml.ScalarNode):
        raise ReleaseError(f"values.yaml: has no {path}")
    return f"{text[: node.start_mark.index]}{json.dumps(value)}{text[node.end_mark.index :]}"


def described(about: str, details: Details) -> str:
    """Return Chart.yaml with what Artifact Hub shows of the release.

    Raises:
        ReleaseError: it is of another version: `make generate` was not run.
    """
    chart: dict[str, Any] = yaml.safe_load(about)
    if (chart["version"], chart["appVersion"]) != (details.version, details.version):
        raise ReleaseError(f"Chart.yaml: version {chart['version']}, appVersion {chart['appVersion']}: must be {details.version}")
    prefix = f"{details.registry}/" if details.registry else ""
    images = [
        {"name": image, "image": f"{prefix}rewardfl-{image}:{details.version}" + (f"@{digest}" if digest else "")}
        for image, digest in ((image, details.digests.get(image, "")) for image in _SECTIONS)
    ]
    changes = [{"kind": kind.lower(), "description": text} for kind, text in details.changes if kind.lower() in _KINDS]
    chart["annotations"] |= {
        "artifacthub.io/prerelease": str(is_prerelease(details.version)).lower(),
        "artifacthub.io/images": yaml.safe_dump(images, sort_keys=False, width=10_000),
        "artifacthub.io/changes": yaml.safe_dump(changes, sort_keys=False, width=10_000),
    }
    return yaml.dump(chart, Dumper=_Readable, sort_keys=False, width=10_000)


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def packed(chart: Path, seconds: int) -> bytes:
    """Return the chart as a tar.gz that depends on its files and the time given, and on nothing else: helm's has the clock's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(
            (path for path in chart.rglob("*") if path.is_file()), key=lambda path: (path.name != "Chart.yaml", path)
        ):
            entry = tarfile.TarInfo(f"{chart.name}/{path.relative_to(chart)}")
            content = path.read_bytes()
            entry.size, entry.mtime, entry.mode = len(content), seconds, 0o644
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), compresslevel=9, mtime=0)


def images_in(archive: Path) -> dict[str, dict[str, str]]:
    """Return what a chart's archive says of each image: registry, repository, digest."""
    with tarfile.open(archive) as members:
        file = members.extractfile("rewardfl/values.yaml")
        values = yaml.safe_load(file.read()) if file is not None else {}
    return {"operator": values["image"], "trainer": values["trainer"]["image"]}


def helm() -> str:
    """The machine's helm, or the one of the local cluster.

    Raises:
        ReleaseError: neither is there.
    """
    own = find_program("helm")
    if own is None and not HELM.is_built:
        raise ReleaseError("helm is not installed: install Helm 3.17 or newer, or run `make cluster-build`, which builds one")
    return str(own) if own is not None else HELM.program("helm")
