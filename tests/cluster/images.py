"""Container images as docker-archive tars, written with nothing but tar and JSON; `ctr images import` takes them."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

_EPOCH = "1970-01-01T00:00:00Z"


def write_archive(path: Path, image: str, layer: bytes, entrypoint: list[str]) -> None:
    """Write an image of one layer.

    Args:
        path: the tar file to write.
        image: the name it has once imported, with its tag.
        layer: the root file system, an uncompressed tar.
        entrypoint: what the image runs by default.
    """
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": _EPOCH,
            "config": {"Entrypoint": entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(configuration).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [image], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        for member, content in ((name, configuration), ("layer.tar", layer), ("manifest.json", manifest)):
            archive.addfile(_file(member, content), io.BytesIO(content))


class Layer:
    """A root file system in the making; everything in it belongs to root and is readable by all."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115 - closed by to_bytes

    def folder(self, path: str, mode: int = 0o755) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(entry)

    def link(self, path: str, target: str) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(entry)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._tar.addfile(_file(path, content, mode), io.BytesIO(content))

    def to_bytes(self) -> bytes:
        """The finished tar; nothing can be added after it."""
        self._tar.close()
        return self._buffer.getvalue()


def _file(path: str, content: bytes, mode: int = 0o644) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), mode
    return entry
