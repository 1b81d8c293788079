"""A whole release, of a copy of this repository, pushed to a registry. Its trainer is a small stand-in, the true one 7 GB."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.model.bom import Bom

from docker.tools import Tool
from release import chart, images
from tests.chart.chart import one, render_text
from tests.cluster import LocalCluster
from tests.cluster.build import HELM
from tests.cluster.machine import ensure_programs
from tests.cluster.paths import REPOSITORY
from tests.cluster.report import run, wait_until
from tests.cluster.stack import OPERATOR_NAMESPACE, RELEASE
from tests.images.registry import registry as a_registry

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

VERSION = "987.6.5-rc.1"
REGISTRY = "registry.example.com/team"
SMALL = "ARG BASE\nFROM ${BASE}\nRUN ln -s python3 /usr/bin/python\n"
CHANGE = "- What this version brings,\n  in two lines.\n"
TAKEN = f"VERSION={VERSION}: the tag v{VERSION} exists; a version is released once: take a higher one"
STARTED_SECONDS = 30


@dataclass(frozen=True)
class Clone:
    """A repository with one commit: the files that are here now."""

    folder: Path

    def git(self, *arguments: str) -> str:
        return run(["git", "-C", str(self.folder), *arguments]).strip()

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        running = self.start(*arguments)
        output, errors = running.communicate()
        return subprocess.CompletedProcess(running.args, running.returncode, output, errors)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        paths = os.pathsep.join(str(self.folder / name) for name in ("crds", "operator", "trainer", "."))
        command = [sys.executable, "-m", *arguments]
        environment = os.environ | {"PYTHONPATH": paths}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **pipes)

    @property
    def dist(self) -> Path:
        return self.folder / "dist" / f"rewardfl-{VERSION}"

    @property
    def chart(self) -> Path:
        return self.dist / f"rewardfl-{VERSION}.tgz"

    def archive(self, image: str) -> Path:
        return images.archive_of(self.dist, image, VERSION)

    def of_archive(self, image: str, part: str) -> dict[str, Any]:
        """The manifest of an image, or its configuration."""
        with tarfile.open(self.archive(image)) as members:

            def read(digest: str) -> dict[str, Any]:
                file = members.extractfile(f"blobs/{digest.replace(':', '/')}")
                assert file is not None
                return dict(json.loads(file.read()))

            manifest = read(images.manifest_digest(self.archive(image)))
            return manifest if part == "manifest" else read(manifest["config"]["digest"])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The copy before anything."""
    clone = Clone(tmp_path_factory.mktemp("release") / "rewardfl")
    for name in run(["git", "-C", str(REPOSITORY), "ls-files", "--cached", "--others", "--exclude-standard"]).splitlines():
        if (REPOSITORY / name).is_file():
            (clone.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, clone.folder / name)
    (clone.folder / "docker" / "trainer.Dockerfile").write_text(SMALL)
    (clone.folder / "CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n### Added\n{CHANGE}")
    clone.git("init", "--quiet", "--initial-branch=main")
    for name, value in {"user.name": "A Person", "user.email": "person@example.com", "commit.gpgSign": "false"}.items():
        clone.git("config", name, value)
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--message=all")
    return clone


@pytest.fixture(scope="module")
def after_a_trial(repository: Clone, lent: None) -> Clone:
    """After `make release IMAGES=trainer`."""
    done = repository.python("release", VERSION, "trainer", "--base=local")
    assert done.returncode == 0, done.stderr
    return repository


@pytest.fixture(scope="module")
def released(after_a_trial: Clone, tool: Tool) -> Iterator[Clone]:
    """After `make release`."""
    clone = after_a_trial
    done = clone.python("release", VERSION, "--base=local", f"--registry={REGISTRY}")
    assert done.returncode == 0, done.stderr
    yield clone
    for image in ("operator", "trainer"):
        run([tool.name, "rmi", f"rewardfl-{image}:{VERSION}"])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry, empty."""
    ensure_programs({"skopeo": "skopeo"})
    with a_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def published(released: Clone, registry: str) -> str:
    """The address below which the release was pushed."""
    done = released.python("release.publish", VERSION, f"--registry={registry}/team", "--plain-http")
    assert done.returncode == 0, done.stderr
    return f"{registry}/team"


def test_a_release_that_is_stopped_leaves_nothing_behind(repository: Clone) -> None:
    dist = repository.folder / "dist"
    running = repository.start("release", VERSION, "--base=local")
    wait_until(lambda: dist.is_dir() and any(dist.iterdir()), "it has begun", timeout_seconds=STARTED_SECONDS)
    running.terminate()
    assert running.communicate()[1].endswith("release: interrupted; nothing has changed\n")
    assert running.returncode == 130
    assert list(dist.iterdir()) == []
    assert repository.git("log", "--format=%s") == "all"
    assert repository.git("worktree", "list").count("\n") == 0


def test_a_trial_with_one_image_commits_and_tags_nothing_and_is_not_published(after_a_trial: Clone, registry: str) -> None:
    assert images.archive_of(after_a_trial.dist, "trainer", VERSION).is_file()
    assert after_a_trial.git("log", "--format=%s") == "all"
    assert after_a_trial.git("tag", "--list") == ""
    refused = after_a_trial.python("release.publish", VERSION, f"--registry={registry}/trial", "--plain-http")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"publish: rewardfl-{VERSION}: a trial without the image operator: ")


def test_a_release_holds_images_bills_of_materials_chart_notes_and_checksums(released: Clone) -> None:
    archives = [f"rewardfl-{image}-{VERSION}.oci.tar" for image in ("operator", "trainer")]
    bills = [f"rewardfl-{image}.cdx.json" for image in ("operator", "trainer")]
    told = [*archives, *bills, "RELEASE_NOTES.md", f"rewardfl-{VERSION}.tgz"]
    assert sorted(path.name for path in released.dist.iterdir()) == sorted([*told, "SHA256SUMS"])
    checked = run(["sh", "-c", f"cd {released.dist} && sha256sum --check --strict SHA256SUMS"])
    assert sorted(checked.splitlines()) == sorted(f"{name}: OK" for name in told)


def test_the_branch_goes_on_to_the_commit_of_the_release_which_has_the_tag(released: Clone) -> None:
    assert released.git("log", "--format=%s") == f"chore(release): {VERSION}\nall"
    assert released.git("rev-parse", f"v{VERSION}^{{commit}}") == released.git("rev-parse", "main")
    assert released.git("status", "--porcelain") == ""
    assert f"## [Unreleased]\n\n## [{VERSION}] - 2" in (released.folder / "CHANGELOG.md").read_text()
    assert released.git("worktree", "list").count("\n") == 0


def test_package_chart_labels_and_command_line_are_of_the_version_given(released: Clone, tool: Tool) -> None:
    about = yaml.safe_load((released.folder / "charts/rewardfl/Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (VERSION, VERSION)
    labels = released.of_archive("operator", "configuration")["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.revision"] == released.git("rev-parse", "main")
    assert tool.run(f"rewardfl-operator:{VERSION}", ["rewardfl", "version"]).strip() == VERSION
    bill = Bom.from_json(json.loads((released.dist / "rewardfl-operator.cdx.json").read_text()))  # type: ignore[attr-defined]
    assert f"pkg:pypi/rewardfl@{VERSION}" in {str(component.purl) for component in bill.components}


def test_the_chart_names_both_images_by_the_digests_of_their_archives(released: Clone) -> None:
    digests = {image: images.manifest_digest(released.archive(image)) for image in ("operator", "trainer")}
    rendered = list(yaml.safe_load_all(render_text({}, str(released.chart))))
    container = one(rendered, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"{REGISTRY}/rewardfl-operator@{digests['operator']}"
    told = [item["data"]["settings.yaml"] for item in rendered if item["kind"] == "ConfigMap" and "settings.yaml" in item["data"]]
    assert yaml.safe_load(told[0])["trainer"]["image"] == f"{REGISTRY}/rewardfl-trainer@{digests['trainer']}"
    about = yaml.safe_load(run([HELM.program("helm"), "show", "chart", str(released.chart)]))
    assert (about["version"], about["appVersion"]) == (VERSION, VERSION)
    changes = yaml.safe_load(about["annotations"]["artifacthub.io/changes"])
    assert changes == [{"kind": "added", "description": "What this version brings, in two lines."}]


def test_the_archive_and_the_chart_run_on_a_node_that_reaches_no_registry(released: Clone) -> None:
    digest = images.manifest_digest(released.archive("operator"))
    with LocalCluster.start() as cluster:
        loaded = cluster.load_image(released.archive("operator"), f"{REGISTRY}/rewardfl-operator")
        assert loaded == [f"{REGISTRY}/rewardfl-operator@{digest}"]
        cluster.helm(
            "install", RELEASE, str(released.chart), "--namespace", OPERATOR_NAMESPACE, "--create-namespace",
            "--wait", "--timeout", "60s",
        )  # fmt: skip
        version = cluster.kubectl(
            "exec", "--namespace", OPERATOR_NAMESPACE, "deployment/rewardfl-operator", "--", "rewardfl", "version"
        )
    assert version.strip() == VERSION


def test_a_version_is_released_once(released: Clone) -> None:
    done = released.python("release", VERSION)
    assert done.returncode == 1
    assert done.stderr == f"release: {TAKEN}\n"


def test_a_registry_has_the_images_under_the_digests_that_the_chart_names(released: Clone, published: str) -> None:
    host, _, folder = published.partition("/")
    for image, named in chart.images_in(released.chart).items():
        address = f"http://{host}/v2/{folder}/rewardfl-{image}/manifests/{named['digest']}"
        accepted = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        with urllib.request.urlopen(urllib.request.Request(address, headers=accepted)) as answer:
            manifest = answer.read()
        assert f"sha256:{sha256(manifest).hexdigest()}" == named["digest"]
        assert json.loads(manifest) == released.of_archive(image, "manifest")


def test_the_published_chart_is_the_one_in_dist(released: Clone, published: str, tmp_path: Path) -> None:
    where = [f"oci://{published}/charts/rewardfl", f"--version={VERSION}", f"--destination={tmp_path}", "--plain-http"]
    run([HELM.program("helm"), "pull", *where])
    assert (tmp_path / released.chart.name).read_bytes() == released.chart.read_bytes()


def test_publishing_again_changes_nothing_and_another_image_of_the_version_is_not_replaced(
    released: Clone, published: str
) -> None:
    again = released.python("release.publish", VERSION, f"--registry={published}", "--plain-http")
    assert again.returncode == 0, again.stderr
    name = f"docker://{published}/rewardfl-operator:{VERSION}"
    trainer = f"oci-archive:{released.archive('trainer')}"
    run(["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", trainer, name])
    refused = released.python("release.publish", VERSION, f"--registry={published}", "--plain-http")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"publish: {published}/rewardfl-operator:{VERSION} is sha256:")
    assert "a version is published once" in refused.stderr


def test_a_file_that_has_changed_since_is_not_published(released: Clone, registry: str, tmp_path: Path) -> None:
    notes = released.dist / "RELEASE_NOTES.md"
    before = notes.read_text()
    notes.write_text("else")
    try:
        refused = released.python("release.publish", VERSION, f"--registry={registry}/else", "--plain-http")
    finally:
        notes.write_text(before)
    assert refused.returncode == 1
    assert "RELEASE_NOTES.md: not as in SHA256SUMS" in refused.stderr
