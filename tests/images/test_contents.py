"""What is in the images. That they run, restricted and from the chart, is in tests/e2e/test_images_on_a_node.py."""

import hashlib
import json
import re
import stat
from pathlib import Path

import pytest
from cyclonedx.model.bom import Bom

from docker import sbom
from docker.build import IMAGES, revision
from docker.tools import Tool
from rewardfl_api import __version__
from tests.cluster.paths import REPOSITORY
from tests.images.built import MARK, built
from tests.images.contents import Contents

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

CODE = {
    "operator": ("crds/rewardfl_api", "operator/rewardfl_operator"),
    "trainer": ("crds/rewardfl_api", "trainer/rewardfl_trainer"),
}
ENTRYPOINT = {"operator": ["rewardfl-operator"], "trainer": None}
LOCKED = {"operator": ("kopf", "kubernetes"), "trainer": ("torch", "deepspeed", "diffsynth", "av")}
INSTALLERS = {"apt", "apt-get", "dpkg", "dpkg-query", "perl", "uv", "gcc", "cc", "g++", "c++", "ld", "as", "make"}
PIP = {"operator": {"pip", "pip3"}, "trainer": set()}
"""Images with rewards of one's own are built upon the trainer's."""
BUILDERS = {"operator": {"pip", "setuptools", "hatchling", "ensurepip"}, "trainer": {"hatchling", "ensurepip", "uv"}}
OPERATOR_LIMIT_BYTES = 250_000_000
SEARCHED_BYTES = 4 << 20
"""Larger files are libraries; what a build leaves behind is a configuration, a log or a cached answer."""
FLAGS = slice(4, 8)
"""Where the flags of a .pyc stand (PEP 552)."""
UNCHECKED_HASH = 1
OUTSIDE = (
    "/etc/apt",
    "/etc/pip",
    "/run/secrets/",
    "/src",
    "/installer",
    "/wheels",
    "/root/",
    "/docker",
    "/opt/.packages",
    "/tmp/",
)


@pytest.fixture(params=IMAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(name: str, contents: dict[str, Contents]) -> Contents:
    return contents[name]


def test_the_operators_image_is_smaller_than_250_mb(contents: dict[str, Contents]) -> None:
    assert contents["operator"].bytes_total < OPERATOR_LIMIT_BYTES


def test_labels_say_what_the_image_is_and_what_it_was_made_of(name: str, image: Contents) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.title"] == f"rewardfl-{name}"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == revision() != ""


def test_the_image_starts_as_a_numeric_user_that_is_not_root(name: str, image: Contents) -> None:
    assert image.config["User"] == "65532:65532"
    assert image.config.get("Entrypoint") == ENTRYPOINT[name]


def test_nothing_in_the_image_installs_or_compiles(name: str, image: Contents) -> None:
    programs = {Path(path).name for path in image.listing if "/bin/" in path or "/sbin/" in path}
    assert programs & (INSTALLERS | PIP[name]) == set()
    assert "python3" in programs, "the search looked in the wrong place"
    packages = {Path(path).name for path in image.listing if Path(path).parent.name in ("site-packages", "dist-packages")}
    assert packages & BUILDERS[name] == set()
    assert "pydantic" in packages, "the search looked in the wrong place"


def test_scanners_find_the_list_of_debian_packages(image: Contents) -> None:
    [status] = [entry.read() for entry in image.entries() if entry.path == "/var/lib/dpkg/status"]
    assert b"Package: libssl3\n" in status


def test_no_file_is_writable_by_all_or_runs_as_another_user(image: Contents) -> None:
    entries = [entry for entry in image.entries() if not stat.S_ISLNK(entry.mode)]
    open_to_all = [entry.path for entry in entries if entry.mode & stat.S_IWOTH and not entry.mode & stat.S_ISVTX]
    foreign = [entry.path for entry in entries if entry.is_file and entry.mode & (stat.S_ISUID | stat.S_ISGID)]
    assert (open_to_all, foreign) == ([], [])
    assert stat.S_IMODE(image.listing["/tmp"].mode) == 0o1777


def test_all_files_are_readable_by_the_images_user(image: Contents) -> None:
    entries = [entry for entry in image.entries() if not stat.S_ISLNK(entry.mode) and entry.path.startswith("/opt/")]
    wanted = {True: stat.S_IROTH, False: stat.S_IROTH | stat.S_IXOTH}
    assert len(entries) > 1000, "the search looked in the wrong place"
    assert [entry.path for entry in entries if entry.mode & wanted[entry.is_file] != wanted[entry.is_file]] == []


def test_nothing_of_the_machine_that_built_it_is_left(image: Contents) -> None:
    secrets = (MARK.encode(), b"rewardfl/images/", b"/run/secrets")
    # Programs may know the folder that Kubernetes mounts secrets into; one of them is what read the build's.
    ours = ("/opt/rewardfl/lib/", "/opt/rewardfl/requirements/add_packages.py", "/usr/")
    found = {
        (entry.path, secret)
        for entry in image.entries()
        if entry.is_file and entry.size <= SEARCHED_BYTES
        for content in [entry.read()]
        for secret in secrets
        if secret in content
    }
    assert {(path, secret) for path, secret in found if secret != b"/run/secrets" or not path.startswith(ours)} == set()
    assert any(secret == b"/run/secrets" for _, secret in found), "the search looked in the wrong place"
    assert MARK not in json.dumps(image.configuration)
    assert [path for path in image.listing if path.startswith(OUTSIDE)] == []
    assert [entry.read() for entry in image.entries() if entry.path in ("/etc/resolv.conf", "/etc/hosts")] in ([], [b""] * 2)


def test_the_image_holds_the_code_that_is_checked_out(name: str, image: Contents) -> None:
    folders = [REPOSITORY / folder for folder in CODE[name]]
    found = {
        entry.path.partition("/site-packages/")[2]: checksum(entry.read())
        for entry in image.entries()
        if entry.is_file and "/site-packages/rewardfl_" in entry.path and not entry.path.endswith(".pyc")
    }
    wanted = {
        path.relative_to(folder.parent).as_posix(): checksum(path.read_bytes())
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    others = {path for path in found.keys() - wanted.keys() if path.endswith("/__init__.py")}
    assert {path: found[path] for path in found.keys() - others} == wanted
    assert len(others) == 1, "of the other part its name alone, which the distribution lists"


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_bytecode_is_there_and_is_not_checked_against_files_times(name: str, image: Contents) -> None:
    compiled = {entry.path: entry.read()[FLAGS] for entry in image.entries() if entry.path.endswith(".pyc")}
    package = Path(CODE[name][1]).name
    assert any(f"/site-packages/{package}/" in path for path in compiled)
    assert {path for path, flags in compiled.items() if int.from_bytes(flags, "little") != UNCHECKED_HASH} == set()


def test_the_bill_of_materials_lists_python_and_debian_packages(name: str, tool: Tool, tmp_path: Path) -> None:
    image = built(name)
    sbom.write(tool, image.name, image.digest, tmp_path / "image.cdx.json")
    found = Bom.from_json(json.loads((tmp_path / "image.cdx.json").read_text()))  # type: ignore[attr-defined]
    purls = {str(component.purl) for component in found.components}
    lock = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    for package in LOCKED[name]:
        versions = re.findall(rf"^{package}==(\S+)", lock, re.MULTILINE)  # several where Pythons differ
        assert {f"pkg:pypi/{package}@{version}" for version in versions} & purls
    assert f"pkg:pypi/rewardfl@{__version__}" in purls
    assert any(re.match(r"pkg:deb/debian/libssl3@[^?]+\?arch=amd64&distro=bookworm", purl) for purl in purls)
    assert image.digest in str(found.metadata.component.purl)
