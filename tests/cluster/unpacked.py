"""An image whose layers lie unpacked on this machine already, and how a node takes it over without a copy.

containerd keeps each layer as a snapshot named by its chain ID, and unpacks none that is there. So the layers' files are linked
into snapshots of these names, and what is imported then is an OCI image layout with manifest and configuration alone. Must not
know who unpacked the layers.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEFAULT_REGISTRY = "docker.io"
_DEFAULT_REPOSITORY = "library"


@dataclass(frozen=True)
class UnpackedImage:
    """An image and where its layers' files are.

    Attributes:
        name: with its tag; as in a pod, Docker's own registry is meant where it names none.
        manifest: the OCI manifest, byte for byte.
        configuration: the OCI configuration, byte for byte.
        layers: the folder of each layer's files, the lowest first, with whiteouts as overlayfs has them.
    """

    name: str
    manifest: bytes
    configuration: bytes
    layers: tuple[Path, ...]

    @property
    def chain_ids(self) -> list[str]:
        """The name of each layer together with all below it (OCI image specification, "Layer ChainID")."""
        return chain_ids(json.loads(self.configuration)["rootfs"]["diff_ids"])

    @property
    def full_name(self) -> str:
        """The name as container runtimes write it."""
        first, *rest = self.name.split("/")
        if rest and ("." in first or ":" in first or first == "localhost"):
            return self.name
        return "/".join([_DEFAULT_REGISTRY, *([] if rest else [_DEFAULT_REPOSITORY]), self.name])


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain ID of each layer, the lowest first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(_digest(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def write_layout(image: UnpackedImage, path: Path) -> None:
    """Write an OCI image layout as a tar: all of the image but its layers."""
    manifest = json.loads(image.manifest)
    descriptor = {
        "mediaType": manifest["mediaType"],
        "digest": _digest(image.manifest),
        "size": len(image.manifest),
        "annotations": {"io.containerd.image.name": image.full_name},
    }
    index = {"schemaVersion": 2, "manifests": [descriptor]}
    with tarfile.open(path, "w") as layout:
        _add(layout, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(layout, "index.json", json.dumps(index).encode())
        for blob in (image.manifest, image.configuration):
            _add(layout, f"blobs/{_digest(blob).replace(':', '/')}", blob)


def snapshot_folder(mounts: Sequence[dict[str, Any]]) -> Path:
    """Where the files of a snapshot that is being made lie, of the mounts that `ctr snapshots prepare --mounts` prints."""
    [mount] = mounts
    upper = [option.removeprefix("upperdir=") for option in mount["Options"] if option.startswith("upperdir=")]
    return Path(upper[0] if upper else mount["Source"])


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
