"""Writes a safetensors file tensor by tensor, so that a 28 GB model never has to be in memory at once.

The library's own `save_file` takes all tensors at the same time. The format: the length of the header (8 bytes, little endian),
the header (JSON: type, shape and place of each tensor, padded with spaces to 8 bytes), then the tensors' bytes without gaps.
Source: github.com/huggingface/safetensors, README, "Format".
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

ALIGNMENT_BYTES = 8
"""Of the first tensor. Types are sorted by size, the largest first, so that every tensor is aligned to its own."""

TYPE_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is, without its content."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Describe a tensor without reading it."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes of the content."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class SafetensorsStream:
    """One file that is being written. Nothing is at `path` until `finish`; leaving the context before that removes what there is.

    Args:
        path: the file.
        infos: every tensor that will be written, by name.
        metadata: the file's metadata.
    """

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
        self.path, self.partial = path, path.with_name(f".{path.name}.partial")
        self._infos, self._waiting = infos, set(infos)
        header, self._places = _header(infos, metadata)
        self._file: BinaryIO = self.partial.open("wb")
        self._file.write(header)
        self._start = len(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, in any order.

        Raises:
            ValueError: it is not the one that was announced, or was written before.
        """
        if name not in self._waiting or TensorInfo.of(tensor) != self._infos[name]:
            raise ValueError(f"{name}: not announced, or not like this")
        self._waiting.remove(name)
        self._file.seek(self._start + self._places[name])
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Put the file, now whole, in its place.

        Raises:
            ValueError: a tensor was not written.
        """
        if self._waiting:
            raise ValueError(f"{min(self._waiting)}: announced and not written")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.partial.replace(self.path)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file of tensors that are in memory, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with SafetensorsStream(path, {name: TensorInfo.of(tensor) for name, tensor in tensors.items()}, metadata) as stream:
        for name, tensor in tensors.items():
            stream.write(name, tensor)
        stream.finish()


def _header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return the first bytes of the file, and where each tensor begins after them."""
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    places, position = {}, 0
    for name in _by_size_of_type(infos):
        info = infos[name]
        places[name], end = position, position + info.size_bytes
        content[name] = {"dtype": TYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text, places


def _by_size_of_type(infos: Mapping[str, TensorInfo]) -> Iterable[str]:
    """Return the names, those of the widest types first."""
    return sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name))
