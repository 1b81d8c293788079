"""What may be released, and what becomes of it: version, changelog, git, chart, checksums. Builds no image."""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from charts.generate import CHART, with_version
from release import changelog, chart, images, sums, versions
from release.__main__ import Wanted, check, release
from release.errors import ReleaseError
from release.repository import Repository
from tests.cluster.report import run

LOG = """# Changelog

## [Unreleased]

### Added
- One thing,
  told in two lines.

### Fixed
- Another.

## [0.1.0] - 2026-01-01

### Added
- The first.
"""
DIGESTS = {"operator": f"sha256:{'a' * 64}", "trainer": f"sha256:{'b' * 64}"}
TIME = 1_700_000_000
WHEN_COMPRESSED = slice(4, 8)
"""Of a gzip file (RFC 1952)."""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with a changelog and a version, and nothing that could be built."""
    made = Repository(tmp_path / "repository")
    write(made, {"CHANGELOG.md": LOG, versions.PLACE: '__version__ = "0.2.0"\n', ".gitignore": "/dist/\n"})
    git(made, "init", "--quiet", "--initial-branch=main")
    for name, value in {"user.name": "A Person", "user.email": "person@example.com", "commit.gpgSign": "false"}.items():
        git(made, "config", name, value)
    made.commit("all")
    return made


def write(repository: Repository, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (repository.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.folder / name).write_text(text)


def git(repository: Repository, *arguments: str) -> str:
    return run(["git", "-C", str(repository.folder), *arguments]).strip()


def details(version: str = "0.3.0", registry: str = "") -> chart.Details:
    return chart.Details(version, DIGESTS, registry, TIME, [("Added", "One thing."), ("Notes", "No kind of Artifact Hub's.")])


@pytest.mark.parametrize("version", ["", "1", "1.2", "v1.2.3", "01.2.3", "1.2.3-rc", "1.2.3-rc.01", "1.2.3-dev.1", "1.2.3+build"])
def test_a_version_that_is_not_semantic_is_refused(version: str) -> None:
    with pytest.raises(ReleaseError, match=r"must be a semantic version such as 1.2.3"):
        versions.check(version, "0.0.1")


def test_a_version_below_the_current_one_is_refused() -> None:
    in_order = ["1.2.3-alpha.9", "1.2.3-beta.1", "1.2.3-rc.2", "1.2.3-rc.10", "1.2.3", "1.2.10", "1.10.0", "2.0.0"]
    for lower, higher in pairwise(in_order):
        versions.check(higher, lower)
        versions.check(higher, higher)
        with pytest.raises(ReleaseError, match=f"VERSION={lower}: lower than {higher}"):
            versions.check(lower, higher)


def test_what_is_unreleased_becomes_the_section_of_the_version() -> None:
    text = changelog.release(LOG, "0.3.0", "2026-02-03")
    assert text.startswith("# Changelog\n\n## [Unreleased]\n\n## [0.3.0] - 2026-02-03\n\n### Added\n- One thing,\n")
    section = changelog.section(text, "0.3.0")
    assert section.startswith("### Added\n- One thing,\n")
    assert "The first" not in section
    assert changelog.entries(section) == [("Added", "One thing, told in two lines."), ("Fixed", "Another.")]


def test_a_release_without_a_change_is_refused_and_so_is_a_section_that_there_is() -> None:
    released = changelog.release(LOG, "0.3.0", "2026-02-03")
    with pytest.raises(ReleaseError, match=r"nothing stands under \[Unreleased\]"):
        changelog.release(released, "0.4.0", "2026-02-04")
    with pytest.raises(ReleaseError, match=r"has a section \[0.1.0\] already"):
        changelog.release(LOG, "0.1.0", "2026-02-03")
    with pytest.raises(ReleaseError, match="must have one line"):
        changelog.release("# Changelog\n", "0.3.0", "2026-02-03")


def test_a_tree_with_changes_a_tag_that_exists_and_an_image_that_does_not_are_refused(repository: Repository) -> None:
    wanted = Wanted("0.3.0")
    check(repository, wanted)
    git(repository, "tag", "v0.3.0")
    with pytest.raises(ReleaseError, match=r"the tag v0.3.0 exists"):
        check(repository, wanted)
    with pytest.raises(ReleaseError, match="there is no image trainers: the images are operator, trainer"):
        check(repository, Wanted("0.3.1", ("trainers",)))
    write(repository, {"a": "", "b": "", "c": "", "d": "", "CHANGELOG.md": f"{LOG}\n"})
    with pytest.raises(ReleaseError, match=r"differ from what is committed: commit or remove CHANGELOG.md, a, b and 2 more"):
        check(repository, wanted)


def test_a_release_that_fails_leaves_nothing_behind(repository: Repository) -> None:
    before = git(repository, "rev-parse", "HEAD")
    with pytest.raises(ReleaseError, match=r"`python -m charts.generate` failed"):
        release(repository, Wanted("0.3.0"), "2026-02-03")
    assert git(repository, "rev-parse", "HEAD") == before
    assert git(repository, "tag", "--list") == ""
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "worktree", "list").count("\n") == 0
    assert list((repository.folder / "dist").iterdir()) == []


def test_a_branch_that_has_gone_on_meanwhile_is_not_moved_and_there_is_no_tag(repository: Repository) -> None:
    with repository.worktree() as tree:
        versions.write(tree.folder, "0.3.0")
        commit = tree.commit("chore(release): 0.3.0")
        write(repository, {"else": ""})
        other = repository.commit("else")
        with pytest.raises(ReleaseError, match="the checkout has changed while the release was made"):
            repository.advance(commit, "v0.3.0")
    assert git(repository, "rev-parse", "HEAD") == other
    assert not repository.has_tag("v0.3.0")


def test_the_version_stands_in_one_place_and_the_chart_follows(repository: Repository) -> None:
    versions.write(repository.folder, "0.3.0")
    assert (repository.folder / versions.PLACE).read_text() == '__version__ = "0.3.0"\n'
    assert versions.read(repository.folder) == "0.3.0"
    about = yaml.safe_load(with_version((CHART / "Chart.yaml").read_text(), "9.8.7-rc.1"))
    assert (about["apiVersion"], about["version"], about["appVersion"]) == ("v2", "9.8.7-rc.1", "9.8.7-rc.1")
    listed = yaml.safe_load(about["annotations"]["artifacthub.io/images"])
    assert [item["image"] for item in listed] == ["rewardfl-operator:9.8.7-rc.1", "rewardfl-trainer:9.8.7-rc.1"]


def test_the_packaged_values_differ_in_the_images_alone() -> None:
    before = (CHART / "values.yaml").read_text()
    after = chart.with_images(before, details(registry="registry.example.com/team"))
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    assert [new.strip() for old, new in pairs if old != new] == [
        'registry: "registry.example.com/team"', f'digest: "{DIGESTS["operator"]}"',
        'registry: "registry.example.com/team"', f'digest: "{DIGESTS["trainer"]}"',
    ]  # fmt: skip
    with pytest.raises(ReleaseError, match=r"values.yaml: has no image.digests"):
        chart.with_value(before, "image.digests", "x")


def test_a_chart_of_another_version_is_not_packaged() -> None:
    about = with_version((CHART / "Chart.yaml").read_text(), "0.3.0")
    found = yaml.safe_load(chart.described(about, details()))
    assert yaml.safe_load(found["annotations"]["artifacthub.io/changes"]) == [{"kind": "added", "description": "One thing."}]
    assert found["annotations"]["artifacthub.io/prerelease"] == "false"
    with pytest.raises(ReleaseError, match=r"version 0.3.0, appVersion 0.3.0: must be 0.4.0"):
        chart.described(about, details("0.4.0"))


def test_the_same_files_give_the_same_archive_whenever_they_were_written(tmp_path: Path) -> None:
    folder = tmp_path / "rewardfl"
    (folder / "templates").mkdir(parents=True)
    for name in ("values.yaml", "templates/a.yaml", "Chart.yaml"):
        (folder / name).write_text(name)
    first = chart.packed(folder, TIME)
    os.utime(folder / "values.yaml", (1, 1))
    (folder / "Chart.yaml").chmod(0o600)
    assert chart.packed(folder, TIME) == first
    assert chart.packed(folder, TIME + 1) != first
    assert first[WHEN_COMPRESSED] == bytes(4)
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert archive.getnames() == ["rewardfl/Chart.yaml", "rewardfl/templates/a.yaml", "rewardfl/values.yaml"]


def test_the_digest_of_an_archive_is_that_of_its_manifest(tmp_path: Path) -> None:
    manifest = b'{"schemaVersion": 2}'
    value = sha256(manifest).hexdigest()
    good = {"index.json": index(value), f"blobs/sha256/{value}": manifest}
    assert images.manifest_digest(archive(tmp_path, good)) == f"sha256:{value}"
    with pytest.raises(ReleaseError, match="damaged; make it again"):
        images.manifest_digest(archive(tmp_path, good | {f"blobs/sha256/{value}": b"{}"}))
    with pytest.raises(ReleaseError, match="holds 2 images: must be one"):
        images.manifest_digest(archive(tmp_path, good | {"index.json": index(value, value)}))
    with pytest.raises(ReleaseError, match=r"has no index.json, so it is no OCI archive"):
        images.manifest_digest(archive(tmp_path, {"manifest.json": b"[]"}))


def index(*values: str) -> bytes:
    return json.dumps({"manifests": [{"digest": f"sha256:{value}"} for value in values]}).encode()


def archive(folder: Path, files: Mapping[str, bytes]) -> Path:
    path = folder / "image.oci.tar"
    with tarfile.open(path, "w") as members:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            members.addfile(entry, io.BytesIO(content))
    return path


def test_a_file_that_is_changed_missing_or_new_is_noticed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    sums.write(tmp_path)
    sums.check(tmp_path)
    (tmp_path / "a").write_text("else")
    (tmp_path / "b").unlink()
    (tmp_path / "c").write_text("c")
    with pytest.raises(ReleaseError, match="a, b, c: not as in SHA256SUMS"):
        sums.check(tmp_path)
