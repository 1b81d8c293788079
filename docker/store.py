"""Where buildah keeps the layers of what it has built: unpacked, in containers/storage with its overlay driver.

Only for bringing an image onto the local cluster's node without 7 GB being packed and unpacked again. Reads and never writes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.cluster.report import run
from tests.cluster.unpacked import UnpackedImage

from .tools import Tool

_DRIVER = "overlay"


def unpacked(tool: Tool, image: str) -> UnpackedImage | None:
    """Find the image's layers; None where they are kept otherwise (docker, podman, another driver).

    What is found is the image that was built: its configuration has the image's ID as checksum, and each layer is recorded with
    the checksum that the configuration names.
    """
    if tool.name != "buildah":
        return None
    place = json.loads(run([tool.name, "info"]))["store"]
    if place["GraphDriverName"] != _DRIVER:
        return None
    built = json.loads(run([tool.name, "inspect", "--type", "image", image]))
    return find(Path(place["GraphRoot"]), image, built)


def find(root: Path, image: str, built: dict[str, Any]) -> UnpackedImage | None:
    """As `unpacked`, of the store below `root` and what `buildah inspect` says of the image."""
    manifest, configuration = built["Manifest"].encode(), built["Config"].encode()
    if hashlib.sha256(configuration).hexdigest() != built["FromImageID"]:
        return None
    images = {entry["id"]: entry for entry in json.loads((root / "overlay-images" / "images.json").read_text())}
    layers = {entry["id"]: entry for entry in json.loads((root / "overlay-layers" / "layers.json").read_text())}
    chain: list[dict[str, Any]] = []
    layer = images.get(built["FromImageID"], {}).get("layer")
    while layer in layers:
        chain.insert(0, layers[layer])
        layer = layers[layer].get("parent")
    if [entry.get("diff-digest") for entry in chain] != json.loads(configuration)["rootfs"]["diff_ids"]:
        return None
    return UnpackedImage(image, manifest, configuration, tuple(root / _DRIVER / entry["id"] / "diff" for entry in chain))
