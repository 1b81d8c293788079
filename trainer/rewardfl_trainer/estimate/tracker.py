"""Counts FLOPs and follows memory while torch code runs, on real tensors or on shapes without data.

FLOPs are those of `torch.utils.flop_counter`; memory is that of every storage from its allocation to its release. Both are split
by what the code was working on and by which pass it was in. Must not know what the code is for: it is told by `watch`.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .shapes import run

aten = torch.ops.aten

Pass = Literal["no_grad", "forward", "recompute", "backward"]
"""Computing without gradient; with gradient; once more for the backward pass; the backward pass itself."""

HOST = "host"
"""The label of what lies in CPU memory: followed, but no part of the peak."""

Work = tuple[str, Pass]


@dataclass
class Peak:
    """Bytes by label at the moment when they were the most."""

    total: int = 0
    by_label: dict[str, int] = field(default_factory=dict)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention, which torch's registry lacks for the CPU."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward_flops(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention's backward pass."""
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call] # as torch declares it
    """Follows what runs inside `with tracker:`.

    Attributes:
        flops: by (label, pass).
        peak: of all labels but `host`.
        peaks: the same for each (label, pass) while that was worked on.
        host_peak: the most bytes of `host`.
    """

    def __init__(self, label: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.label = label
        self.flops: Counter[Work] = Counter()
        self.peak = Peak()
        self.peaks: dict[Work, Peak] = {}
        self.host_peak = 0
        self.bytes: Counter[str] = Counter()
        self._total = 0
        self._costs: dict[Any, int] = {}
        self._held: dict[int, tuple[int, str, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note what it cost."""
        with torch._C.DisableTorchFunction():
            return self._tracked(func, args, kwargs or {})

    def _tracked(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = run(func, args, kwargs)
        work = (self.label, current_pass())
        packet = func._overloadpacket
        if packet in flop_registry or packet in _CPU_ATTENTION:
            self.flops[work] += self._cost(packet, args, kwargs, result)
        for value in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(value, Tensor):
                self.hold(value)
        if self.label != HOST:
            self._note(work)
        return result

    def _cost(self, packet: Any, args: Any, kwargs: Any, result: Any) -> int:
        """Return the FLOPs of an operation, which depend on the shapes of its arguments."""
        shapes = (
            packet,
            *(tuple(arg.shape) if isinstance(arg, Tensor) else str(arg) for arg in args),
            str(kwargs) if kwargs else "",
        )
        if shapes not in self._costs:
            formula = _CPU_ATTENTION.get(packet) or partial(flop_registry[packet], out_val=result)
            self._costs[shapes] = int(formula(*args, **kwargs))
        return self._costs[shapes]

    def hold(self, tensor: Tensor, label: str | None = None) -> None:
        """Follow the storage of a tensor; with a label, count it there from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            if label is not None:
                self._move(key, label)
            return
        label, size = label or self.label, storage.nbytes()
        self._held[key] = (size, label, weakref.ref(storage, partial(self._release, key)))
        self._add(label, size)

    def hold_all(self, tensors: Iterable[Tensor], label: str) -> None:
        """Follow what was allocated before, as `label`."""
        for tensor in tensors:
            self.hold(tensor, label)
        self._note((self.label, current_pass()))

    def watch(self, module: nn.Module, label: str | Callable[[], str]) -> None:
        """Count as `label` what the module does, forward and backward, until another watched module is entered."""
        name = label if callable(label) else lambda: label

        def enter(*_: Any) -> None:
            self.label = name()

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            back = partial(setattr, self, "label", self.label)
            for value in tree_leaves(output):
                if isinstance(value, Tensor) and value.requires_grad:
                    value.register_hook(lambda _gradient: back())  # type: ignore[no-untyped-call]

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Inside, count as `label`."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def _move(self, key: int, label: str) -> None:
        size, before, reference = self._held[key]
        self._add(before, -size)
        self._add(label, size)
        self._held[key] = (size, label, reference)

    def _release(self, key: int, _reference: object) -> None:
        size, label, _ = self._held.pop(key)
        self._add(label, -size)

    def _add(self, label: str, size: int) -> None:
        self.bytes[label] += size
        if label == HOST:
            self.host_peak = max(self.host_peak, self.bytes[HOST])
        else:
            self._total += size

    def _note(self, work: Work) -> None:
        own = self.peaks.get(work)
        if own is None:
            own = self.peaks[work] = Peak()
        for peak in (self.peak, own):
            if self._total > peak.total:
                peak.total, peak.by_label = (
                    self._total,
                    {label: size for label, size in self.bytes.items() if size and label != HOST},
                )


def current_pass() -> Pass:
    """Return which pass the code is in that runs now."""
    in_backward = torch._C._current_graph_task_id() != -1
    if torch.is_grad_enabled():
        return "recompute" if in_backward else "forward"
    return "backward" if in_backward else "no_grad"
