"""What is in the operator's image, and that it works as it is: on a node, under restricted pod security, from the chart."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.model.bom import Bom

from docker import sbom
from docker.build import Built, revision
from docker.tools import Tool
from rewardfl_api import __version__
from tests.cluster import LocalCluster
from tests.cluster.paths import REPOSITORY
from tests.cluster.report import ClusterError
from tests.cluster.stack import CHART, OPERATOR_NAMESPACE, RELEASE
from tests.images.archive import Archive
from tests.images.conftest import MARK

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PACKAGES = (REPOSITORY / "crds" / "rewardfl_api", REPOSITORY / "operator" / "rewardfl_operator")
LIMIT_BYTES = 250_000_000
INSTALLERS = ("apt", "apt-get", "dpkg", "dpkg-query", "pip", "pip3", "perl", "gcc", "cc", "g++", "c++", "ld", "as", "make")
FLAGS = 4
"""Where the flags of a .pyc stand (PEP 552)."""
UNCHECKED_HASH = 1


@pytest.fixture(scope="module")
def cluster(operator_archive: Path) -> Iterator[LocalCluster]:
    """A node with the operator installed from the chart with nothing but the image's name; the namespace is restricted."""
    with LocalCluster.start() as running:
        running.load_image(operator_archive)
        running.kubectl("create", "namespace", OPERATOR_NAMESPACE)
        running.kubectl("label", "namespace", OPERATOR_NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        running.helm(
            "install", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "60s",
            "--set", "image.pullPolicy=Never", "--set", f"image.tag={__version__}",
        )  # fmt: skip
        yield running


def in_operator(cluster: LocalCluster, *command: str) -> str:
    return cluster.kubectl("exec", "--namespace", OPERATOR_NAMESPACE, "deployment/rewardfl-operator", "--", *command)


def test_the_image_is_smaller_than_250_mb(operator: Archive) -> None:
    assert sum(operator.layer_bytes) < LIMIT_BYTES


def test_labels_say_what_the_image_is_and_what_it_was_made_of(operator: Archive) -> None:
    labels = operator.config["Labels"]
    assert labels["org.opencontainers.image.title"] == "rewardfl-operator"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == revision() != ""


def test_the_image_starts_the_operator_as_a_numeric_user_that_is_not_root(operator: Archive) -> None:
    assert operator.config["User"] == "65532:65532"
    assert operator.config["Entrypoint"] == ["rewardfl-operator"]


def test_nothing_in_the_image_installs_or_compiles(operator: Archive) -> None:
    programs = {Path(path).name for path in operator.listing if "/bin/" in path or "/sbin/" in path}
    assert programs.isdisjoint(INSTALLERS)
    assert "python3" in programs, "the search looked in the wrong place"
    packages = {Path(path).name for path in operator.listing if "-packages/" in path}
    assert packages.isdisjoint({"pip", "setuptools", "hatchling", "ensurepip"})
    assert "kopf" in packages, "the search looked in the wrong place"


def test_scanners_find_the_list_of_debian_packages(operator: Archive) -> None:
    [status] = [entry.content for entry in operator.entries() if entry.path == "/var/lib/dpkg/status"]
    assert b"Package: libssl3\n" in status


def test_no_file_is_writable_by_all_or_runs_as_another_user(operator: Archive) -> None:
    entries = [(path, info) for path, info in operator.listing.items() if not info.issym()]
    open_to_all = [path for path, info in entries if info.mode & stat.S_IWOTH and not info.mode & stat.S_ISVTX]
    foreign = [path for path, info in entries if info.isfile() and info.mode & (stat.S_ISUID | stat.S_ISGID)]
    assert (open_to_all, foreign) == ([], [])
    assert stat.S_IMODE(operator.listing["/tmp"].mode) == 0o1777


def test_nothing_of_the_machine_that_built_it_is_left(operator: Archive) -> None:
    secrets = [MARK.encode(), b"/run/secrets", b"rewardfl-images-"]
    ours = ("/opt/rewardfl/lib/", "/usr/")  # programs may know the folder that Kubernetes mounts secrets into
    found = [
        (entry.path, secret)
        for entry in operator.entries()
        for secret in secrets
        if secret in entry.content and not (secret == b"/run/secrets" and entry.path.startswith(ours))
    ]
    assert found == []
    assert not any(secret.decode() in json.dumps(operator.configuration) for secret in secrets[:1])
    assert [
        path
        for path in operator.listing
        if path.startswith(("/etc/apt", "/etc/pip", "/run/secrets/", "/src", "/installer", "/wheels", "/root/", "/docker"))
    ] == []
    assert [entry.content for entry in operator.entries() if entry.path in ("/etc/resolv.conf", "/etc/hosts")] in ([], [b""] * 2)


def test_the_image_holds_the_code_that_is_checked_out(operator: Archive) -> None:
    installed = "/site-packages/"
    found = {
        entry.path.split(installed)[1]: entry.content for entry in operator.entries() if f"{installed}rewardfl_" in entry.path
    }
    wanted = {
        path.relative_to(folder.parent).as_posix(): path.read_bytes() for folder in PACKAGES for path in folder.rglob("*.py")
    }
    assert {
        name: content for name, content in found.items() if name.endswith(".py") and not name.startswith("rewardfl_trainer/")
    } == wanted


def test_bytecode_is_there_and_is_not_checked_against_files_times(operator: Archive) -> None:
    compiled = {entry.path: entry.content for entry in operator.entries() if entry.path.endswith(".pyc")}
    assert any(path.startswith("/opt/rewardfl/") and "/rewardfl_operator/" in path for path in compiled)
    flags = {int.from_bytes(content[FLAGS : FLAGS + 4], "little") for content in compiled.values()}
    assert flags == {UNCHECKED_HASH}


def test_the_operator_runs_from_its_image_under_restricted_pod_security(cluster: LocalCluster) -> None:
    pod = json.loads(cluster.kubectl("get", "pods", "--namespace", OPERATOR_NAMESPACE, "--output=json"))["items"][0]
    assert [volume for volume in pod["spec"]["volumes"] if "hostPath" in volume] == []
    assert in_operator(cluster, "id", "-u").strip() == "65532"
    with pytest.raises(ClusterError, match="Read-only file system"):
        in_operator(cluster, "sh", "-c", "echo >/opt/rewardfl/there")


def test_the_command_line_in_the_image_says_its_version(cluster: LocalCluster) -> None:
    assert in_operator(cluster, "rewardfl", "version").strip() == __version__


def test_the_bill_of_materials_lists_python_and_debian_packages(tool: Tool, operator_image: Built, tmp_path: Path) -> None:
    sbom.write(tool, operator_image.name, operator_image.digest, tmp_path / "operator.cdx.json")
    found = Bom.from_json(json.loads((tmp_path / "operator.cdx.json").read_text()))  # type: ignore[attr-defined]
    purls = {str(component.purl) for component in found.components}
    locked = re.findall(r"^(kopf|kubernetes)==(\S+)", (REPOSITORY / "requirements" / "operator.txt").read_text(), re.MULTILINE)
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked} <= purls
    assert f"pkg:pypi/rewardfl@{__version__}" in purls
    assert any(re.match(r"pkg:deb/debian/libssl3@[^?]+\?arch=amd64&distro=bookworm", purl) for purl in purls)
    assert operator_image.digest in str(found.metadata.component.purl)
