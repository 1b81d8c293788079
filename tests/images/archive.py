"""A docker-archive tar, read as what it is: layers and a configuration."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A file, folder or link of a layer; `content` is empty for what is no file."""

    layer: int
    info: tarfile.TarInfo
    content: bytes

    @property
    def path(self) -> str:
        return "/" + self.info.name.removeprefix("./").strip("/")


class Archive:
    def __init__(self, path: Path) -> None:
        self._path = path
        with tarfile.open(path) as archive:
            manifest = json.loads(self._read(archive, "manifest.json"))[0]
            self.configuration: dict[str, Any] = json.loads(self._read(archive, manifest["Config"]))
            self._layers: list[str] = manifest["Layers"]

    @property
    def config(self) -> dict[str, Any]:
        """What a container of the image is started with."""
        return dict(self.configuration["config"])

    def entries(self) -> Iterator[Entry]:
        """All that is in the layers, also what a later layer covers."""
        with tarfile.open(self._path) as archive:
            for number, name in enumerate(self._layers):
                with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                    for info in layer:
                        file = layer.extractfile(info) if info.isfile() else None
                        yield Entry(number, info, file.read() if file else b"")

    @cached_property
    def listing(self) -> dict[str, tarfile.TarInfo]:
        """What a container sees, by absolute path. (No layer of these images removes anything of one below.)"""
        return {entry.path: entry.info for entry in self.entries()}

    @property
    def layer_bytes(self) -> list[int]:
        """The size of each layer's files."""
        sizes = [0] * len(self._layers)
        for entry in self.entries():
            sizes[entry.layer] += entry.info.size
        return sizes

    @staticmethod
    def _read(archive: tarfile.TarFile, name: str) -> bytes:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()
