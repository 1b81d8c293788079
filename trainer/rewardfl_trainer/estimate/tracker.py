"""Counts FLOPs and follows memory while torch code runs, on real tensors or on fake ones (shapes without data).

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
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

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
        self._held: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note what it cost."""
        kwargs = kwargs or {}
        answered, result = _answer(func, args)
        if not answered:
            result = func(*args, **kwargs)
        work = (self.label, current_pass())
        if cost := _flops(func, args, kwargs, result):
            self.flops[work] += cost
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.hold(value)
        self._note(work)
        return result

    def hold(self, tensor: Tensor, label: str | None = None) -> None:
        """Follow the storage of a tensor; with a label, count it there from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            if label is not None:
                self._move(key, label)
            return
        self._held[key] = (storage.nbytes(), label or self.label)
        self.bytes[label or self.label] += storage.nbytes()
        weakref.finalize(storage, self._release, key).atexit = False

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
        size, before = self._held[key]
        self.bytes[before] -= size
        self.bytes[label] += size
        self._held[key] = (size, label)

    def _release(self, key: int) -> None:
        size, label = self._held.pop(key)
        self.bytes[label] -= size

    def _note(self, work: Work) -> None:
        host = self.bytes[HOST]
        self.host_peak = max(self.host_peak, host)
        total = self.bytes.total() - host
        own = self.peaks.setdefault(work, Peak())
        for peak in (self.peak, own):
            if total > peak.total:
                peak.total, peak.by_label = total, {name: size for name, size in self.bytes.items() if size and name != HOST}


def current_pass() -> Pass:
    """Return which pass the code is in that runs now."""
    in_backward = torch._C._current_graph_task_id() != -1
    if torch.is_grad_enabled():
        return "recompute" if in_backward else "forward"
    return "backward" if in_backward else "no_grad"


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the FLOPs of an operation: two for each multiplication and addition of matrix products and convolutions."""
    packet = func._overloadpacket
    if packet in _CPU_ATTENTION:
        return _CPU_ATTENTION[packet](*args, **kwargs)
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def _answer(func: Any, args: Any) -> tuple[bool, Any]:
    """Answer a question about the values of a tensor that has none: every one is 1."""
    if not args or not isinstance(args[0], FakeTensor):
        return False, None
    tensor = args[0]
    if func is aten._local_scalar_dense.default:
        return True, {torch.bool: True}.get(tensor.dtype, 1.0 if tensor.is_floating_point() else 1)
    if func is aten.nonzero.default:
        return True, tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)
    return False, None
