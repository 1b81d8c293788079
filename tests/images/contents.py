"""What is in an image, layer by layer: read from a docker-archive tar, or where buildah keeps the layers unpacked."""

import json
import os
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tests.cluster.unpacked import UnpackedImage

_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
}


@dataclass(frozen=True)
class Entry:
    """A file, folder or link of a layer, by the path that a container sees; `mode` is that of stat(2).

    `read` returns a file's content, of an archive only until the next entry is asked for.
    """

    layer: int
    path: str
    mode: int
    size: int
    read: Callable[[], bytes]

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Contents(ABC):
    configuration: dict[str, Any]

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """All that is in the layers, also what a later layer covers."""

    @property
    def config(self) -> dict[str, Any]:
        """What a container of the image is started with."""
        return dict(self.configuration["config"])

    @cached_property
    def listing(self) -> dict[str, Entry]:
        """What a container sees, by path. (No layer of these images removes anything of one below.)"""
        return {entry.path: entry for entry in self.entries()}

    @property
    def bytes_total(self) -> int:
        """The size of all layers' files."""
        return sum(entry.size for entry in self.entries())


class Archive(Contents):
    """A docker-archive tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with tarfile.open(path) as archive:
            manifest = json.loads(_content(archive, "manifest.json"))[0]
            self.configuration = json.loads(_content(archive, manifest["Config"]))
            self._layers: list[str] = manifest["Layers"]

    def entries(self) -> Iterator[Entry]:
        with tarfile.open(self._path) as archive:
            for number, name in enumerate(self._layers):
                with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                    for info in layer:
                        path = "/" + info.name.removeprefix("./").strip("/")
                        yield Entry(number, path, _KINDS[info.type] | info.mode, info.size, partial(_content, layer, info))


class Folders(Contents):
    """An image whose layers lie unpacked on this machine."""

    def __init__(self, image: UnpackedImage) -> None:
        self.configuration = json.loads(image.configuration)
        self._layers = image.layers

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries)

    @cached_property
    def _entries(self) -> list[Entry]:
        return [
            _entry(number, layer, Path(root, name))
            for number, layer in enumerate(self._layers)
            for root, folders, files in os.walk(layer)
            for name in (*folders, *files)
        ]


def _entry(number: int, layer: Path, path: Path) -> Entry:
    found = path.lstat()
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return Entry(number, f"/{path.relative_to(layer)}", found.st_mode, size, path.read_bytes)


def _content(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
