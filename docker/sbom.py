"""What is in an image, as a CycloneDX document: its Debian packages and its Python packages, as the image itself lists them.

The lists are read by the image's own Python, so that what is told is what runs, not what a requirements file asked for.
"""

import json
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from . import workplace
from .tools import Tool

_LISTING = """
import importlib.metadata, json, re
packages = [(found.metadata["Name"], found.version) for found in importlib.metadata.distributions()]
status = open("/var/lib/dpkg/status", encoding="utf-8").read().split("\\n\\n")
fields = [dict(re.findall(r"^(Package|Version|Architecture): (.*)$", entry, re.MULTILINE)) for entry in status if entry.strip()]
print(json.dumps({"python": packages, "debian": fields, "base": dict(
    line.rstrip().split("=", 1) for line in open("/etc/os-release", encoding="utf-8") if "=" in line)}))
"""


def write(tool: Tool, image: str, digest: str, path: Path) -> None:
    """Write the document of `image` into the file `path`.

    Raises:
        ClusterError: the image's Python cannot be run.
    """
    with workplace.enter(tool):
        listing = json.loads(tool.run(image, ["python", "-c", _LISTING]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        make_outputter(document(image, digest, listing), OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    )


def document(image: str, digest: str, listing: dict[str, Any]) -> Bom:
    """The document of an image that lists these packages; components are ordered by name."""
    name, _, version = image.rpartition(":")
    subject = Component(name=name, version=version, type=ComponentType.CONTAINER)
    subject.bom_ref.value = image
    subject.purl = PackageURL("oci", None, name.rpartition("/")[2], f"sha256:{digest}", {"tag": version})
    bom = Bom()
    bom.metadata.component = subject
    distribution = listing["base"].get("ID", "debian").strip('"')
    codename = listing["base"].get("VERSION_CODENAME", "").strip('"')
    for package in sorted(listing["debian"], key=lambda entry: str(entry["Package"])):
        qualifiers = {"arch": package["Architecture"], "distro": codename}
        purl = PackageURL("deb", distribution, package["Package"], package["Version"], qualifiers)
        bom.components.add(_library(package["Package"], package["Version"], purl))
    for python_name, python_version in sorted({(name.lower(), version) for name, version in listing["python"]}):
        bom.components.add(_library(python_name, python_version, PackageURL("pypi", None, python_name, python_version)))
    bom.register_dependency(subject, bom.components)
    return bom


def _library(name: str, version: str, purl: PackageURL) -> Component:
    return Component(name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string())
