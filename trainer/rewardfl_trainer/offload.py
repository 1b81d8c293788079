"""Keeps tensors that the backward pass needs in CPU memory meanwhile.

On a GPU the copies run beside the computation, in a stream of their own: out while the forward pass goes on, and back before they
are asked for, since the backward pass wants them in the reverse order. On a CPU the same code runs without streams. Must not
decide what is kept, nor change a value.

What makes it safe on a GPU, whose streams run at the same time:
- Out: the copy waits for the stream that computed the tensor, and the tensor's memory is not used again before the copy is done.
- Both ways in one stream: nothing comes back before it has left.
- Back: the memory comes from the computing stream, for which the copy waits, and that stream waits for the copy before its use.
- Pinned memory is used again only after the copies from and to it (torch's host allocator sees to that for asynchronous copies).
Nobody may change a tensor in place after it was packed.
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AHEAD_BYTES = 256 * 2**20
"""What is brought back before it is asked for: the input of a block at A14B's size (194 MB), and little beside the peak."""


def _nothing() -> None:
    return None


@dataclass(eq=False)
class Kept:
    """A tensor in CPU memory."""

    host: Tensor
    device: torch.device
    before: "Callable[[], Kept | None]"
    """Returns what was packed before it, which is wanted after it; None when that is gone."""
    fetched: Tensor | None = None
    """The tensor on its device, once it is on the way."""
    arrived: Any = None
    """The event of its arrival."""
    is_used: bool = False


class Offload:
    """Packs and unpacks saved tensors (torch.autograd.graph.saved_tensors_hooks)."""

    def __init__(self, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.ahead_bytes = ahead_bytes
        self._last: Callable[[], Kept | None] = _nothing
        self._streams: dict[torch.device, Any] = {}

    def hooks(self) -> AbstractContextManager[Any]:
        """Return a block: what is saved for the backward pass inside of it waits in CPU memory."""
        hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        return hooks

    def pack(self, tensor: Tensor) -> Kept:
        """Begin to copy a tensor to the CPU."""
        source, library = tensor.detach().contiguous(), _library(tensor.device)
        stream = self._stream(tensor.device)
        stream.wait_stream(library.current_stream(tensor.device))
        with library.stream(stream):
            host = self.to_host(source)
        _hold_until_done(source, stream)
        kept = Kept(host, tensor.device, self._last)
        self._last = weakref.ref(kept)
        return kept

    def to_host(self, source: Tensor) -> Tensor:
        """Return a copy in CPU memory, on its way."""
        host = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
        return host.copy_(source, non_blocking=True)

    def unpack(self, kept: Kept) -> Tensor:
        """Return a tensor on its device, and begin to bring back those that will be wanted next."""
        tensor = kept.fetched if kept.fetched is not None else self._fetch(kept)
        _library(kept.device).current_stream(kept.device).wait_event(kept.arrived)
        kept.fetched, kept.is_used = None, True
        self._fetch_ahead(kept)
        return tensor

    def _fetch_ahead(self, kept: Kept) -> None:
        """Begin to bring back what was packed before `kept`, up to `ahead_bytes`."""
        room, following = self.ahead_bytes, kept.before()
        while following is not None:
            if not following.is_used:
                room -= following.host.nbytes
                if room < 0:
                    return
                if following.fetched is None:
                    self._fetch(following)
            following = following.before()

    def _fetch(self, kept: Kept) -> Tensor:
        """Begin to copy a tensor back."""
        library, stream = _library(kept.device), self._stream(kept.device)
        tensor = torch.empty(kept.host.shape, dtype=kept.host.dtype, device=kept.device)
        stream.wait_stream(library.current_stream(kept.device))
        with library.stream(stream):
            tensor.copy_(kept.host, non_blocking=True)
            kept.arrived = stream.record_event()
        _hold_until_done(tensor, stream)
        kept.fetched = tensor
        return tensor

    def _stream(self, device: torch.device) -> Any:
        """Return the stream of the copies."""
        if device not in self._streams:
            library = _library(device)
            self._streams[device] = library.Stream() if library is torch.cpu else library.Stream(device)
        return self._streams[device]


def _library(device: torch.device) -> Any:
    """Return the module of a device's streams. Shapes without data (`rewardfl estimate`) have none: the CPU's do nothing."""
    return torch.get_device_module("cpu" if device.type == "meta" else device)


def _hold_until_done(tensor: Tensor, stream: Any) -> None:
    """Let the allocator use the tensor's memory again only after what `stream` has to do so far."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
