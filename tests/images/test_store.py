"""Which folders of buildah's store are taken for an image's layers."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from docker import store
from docker.tools import Tool
from tests.cluster.unpacked import UnpackedImage, chain_ids

LAYERS = ["sha256:" + "a" * 64, "sha256:" + "b" * 64]
CONFIGURATION = json.dumps({"rootfs": {"type": "layers", "diff_ids": LAYERS}})
ID = hashlib.sha256(CONFIGURATION.encode()).hexdigest()
BUILT = {"FromImageID": ID, "Config": CONFIGURATION, "Manifest": "{}"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with one image of two layers."""
    write(tmp_path, "images", [{"id": ID, "layer": "upper"}])
    lower, upper = ({"id": name, "diff-digest": digest} for name, digest in zip(("lower", "upper"), LAYERS, strict=True))
    write(tmp_path, "layers", [upper | {"parent": "lower"}, lower])
    return tmp_path


def write(root: Path, kind: str, content: list[dict[str, Any]]) -> None:
    folder = root / f"overlay-{kind}"
    folder.mkdir(exist_ok=True)
    (folder / f"{kind}.json").write_text(json.dumps(content))


def test_the_layers_folders_are_found_the_lowest_first(root: Path) -> None:
    found = store.find(root, "image:1", BUILT)
    assert found is not None
    assert found.layers == (root / "overlay" / "lower" / "diff", root / "overlay" / "upper" / "diff")
    assert (found.name, found.manifest, found.configuration) == ("image:1", b"{}", CONFIGURATION.encode())


def test_layers_that_are_not_recorded_with_the_images_checksums_are_not_taken(root: Path) -> None:
    write(root, "layers", [{"id": "upper", "diff-digest": LAYERS[1]}])
    assert store.find(root, "image:1", BUILT) is None


def test_a_configuration_that_is_not_the_images_is_not_taken(root: Path) -> None:
    assert store.find(root, "image:1", BUILT | {"Config": CONFIGURATION + " "}) is None


def test_only_buildahs_store_is_looked_into() -> None:
    assert store.unpacked(Tool("docker"), "image:1") is None


def test_a_layers_name_is_that_of_all_layers_up_to_it() -> None:
    # `printf '%s %s' sha256:aaa... sha256:bbb... | sha256sum`
    both = "sha256:" + hashlib.sha256(f"{LAYERS[0]} {LAYERS[1]}".encode()).hexdigest()
    assert chain_ids(LAYERS) == [LAYERS[0], both]
    assert chain_ids([*LAYERS, LAYERS[0]])[2] == "sha256:" + hashlib.sha256(f"{both} {LAYERS[0]}".encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("rewardfl:1", "docker.io/library/rewardfl:1"),
        ("team/rewardfl:1", "docker.io/team/rewardfl:1"),
        ("registry.example.com/team/rewardfl:1", "registry.example.com/team/rewardfl:1"),
        ("localhost/rewardfl:1", "localhost/rewardfl:1"),
    ],
)
def test_an_image_without_a_registry_has_the_name_that_a_node_looks_for(name: str, full: str) -> None:
    assert UnpackedImage(name, b"", b"", ()).full_name == full
