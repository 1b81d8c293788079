"""The optimizer's state as whole, named tensors, whatever ZeRO stage and world size it is spread by.

For every trained parameter: `master.NAME` (fp32), `exp_avg.NAME`, `exp_avg_sq.NAME` and `step.NAME`. DeepSpeed's own checkpoints
are pickles, bound to stage and world size; these tensors can be loaded into any other. Must not read or write files.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import AdamW, Optimizer

from .environment import Process

MASTER, STEP = "master", "step"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names of its moments, torch's and DeepSpeed's alike."""


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that this rank's optimizer updates, flat."""

    tensor: Tensor
    """What the optimizer updates (fp32); holds pieces of many parameters where ZeRO flattens them."""
    start: int
    """Where the part begins in `tensor`."""
    offset: int
    """Where the part begins in the parameter."""
    length: int

    def view_of(self, tensor: Tensor) -> Tensor:
        """Return the part in `tensor`, which is shaped like the optimizer's own."""
        return tensor.data.reshape(-1).narrow(0, self.start, self.length)


class EngineState:
    """Reads and writes masters and moments of the trained parameters.

    Args:
        named: every trained parameter by its name, in the same order on every rank.
        optimizer: AdamW.
        wrapper: DeepSpeed's optimizer around it; the same object where there is none.
        process: rank, world size and device.
    """

    def __init__(self, named: list[tuple[str, nn.Parameter]], optimizer: Optimizer, wrapper: Any, process: Process) -> None:
        self.named, self.optimizer, self.wrapper, self.process = named, optimizer, wrapper, process
        self.is_zero3 = hasattr(wrapper, "fp32_partitioned_groups_flat")
        self.partitioned = self.is_zero3 or any(hasattr(parameter, "_hp_mapping") for _, parameter in named)
        self._masters = {} if self.partitioned else _unflattened_masters(wrapper)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor whole, on the CPU, one at a time, on the main rank. A collective call: every rank must exhaust it.

        The bits are kept: parts are put together as integers, so that not even a negative zero changes.
        """
        for name, parameter in self.named:
            piece, shape = self._piece(parameter), _whole_shape(parameter)
            state = self._state_of(piece)
            for key in (MASTER, *MOMENTS) if state else (MASTER,):
                whole = self._gathered(piece, key, shape.numel())
                if self.process.is_main:
                    yield f"{key}.{name}", whole.reshape(shape)
            if state and self.process.is_main:
                yield f"{STEP}.{name}", torch.tensor(int(state[STEP]), dtype=torch.int64)

    def shapes(self) -> dict[str, torch.Size]:
        """Return name and shape of every master."""
        return {f"{MASTER}.{name}": _whole_shape(parameter) for name, parameter in self.named}

    def load(self, names: Collection[str], read: Callable[[str], Tensor]) -> None:
        """Set masters and moments, and the parameters to what follows from them. A collective call.

        Args:
            names: of all tensors, the same on every rank. Every master is among them, with the shape that `shapes` says.
            read: returns one of them; called on the main rank only.
        """
        if self.is_zero3:
            self.wrapper.checkpoint_event_prologue()
        with torch.no_grad():
            for name, parameter in self.named:
                self._load(name, parameter, names, read)
        self._refresh_parameters()
        if self.is_zero3:
            self.wrapper.checkpoint_event_epilogue()

    def _load(self, name: str, parameter: nn.Parameter, names: Collection[str], read: Callable[[str], Tensor]) -> None:
        """Set master, moments and step of one parameter."""
        piece, shape = self._piece(parameter), _whole_shape(parameter)
        whole = {key: self._broadcast(f"{key}.{name}", shape, read) for key in (MASTER, *MOMENTS) if f"{key}.{name}" in names}
        step = self._broadcast(f"{STEP}.{name}", torch.Size(), read) if f"{STEP}.{name}" in names else None
        if piece is None:
            return
        for key, tensor in whole.items():
            piece.view_of(self._tensor_of(piece, key)).copy_(tensor.reshape(-1).narrow(0, piece.offset, piece.length))
        if step is not None:
            state = self.optimizer.state[piece.tensor]
            # torch keeps the count as a tensor, DeepSpeed's CPU Adam as an int.
            state[STEP] = torch.tensor(float(step)) if isinstance(self.optimizer, AdamW) else int(step)

    def _tensor_of(self, piece: Piece, key: str) -> Tensor:
        """Return master or moment, shaped like the master. A moment that is not there yet is zero, as is all padding."""
        if key == MASTER:
            return piece.tensor
        moment: Tensor = self.optimizer.state[piece.tensor].setdefault(key, torch.zeros_like(piece.tensor.data))
        return moment

    def _piece(self, parameter: nn.Parameter) -> Piece | None:
        """Return this rank's part of a parameter; None where it has none."""
        if self.is_zero3:
            group, start, length = self.wrapper.grad_position[self.wrapper.get_param_id(parameter)]
            offset = length * self.process.rank
            length = min(length, parameter.ds_numel - offset)  # type: ignore[attr-defined]
            tensor = self.wrapper.fp32_partitioned_groups_flat[group]
            return Piece(tensor, start, offset, length) if length > 0 else None
        if hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2, and bf16 under ZeRO 1
            mapping: Any = parameter._hp_mapping
            if mapping is None:
                return None
            high, low = mapping.hp_fragment_address, mapping.lp_fragment_address
            tensor = self.optimizer.param_groups[mapping.param_group_index]["params"][0]
            return Piece(tensor, high.start, low.start, low.numel)
        tensor = self._masters.get(id(parameter), parameter)
        return Piece(tensor, 0, 0, tensor.numel())

    def _state_of(self, piece: Piece | None) -> Mapping[str, Any]:
        """Return what the optimizer keeps of a part; empty before its first step. Under ZeRO all parts step together."""
        if self.partitioned:
            return next((state for state in self.optimizer.state.values() if state), {})
        return self.optimizer.state.get(piece.tensor, {}) if piece is not None else {}

    def _gathered(self, piece: Piece | None, key: str, numel: int) -> Tensor:
        """Return a parameter's tensor whole and flat, on the CPU; meaningless on other ranks than the main one."""
        if piece is not None and not self.partitioned:
            return piece.view_of(self._tensor_of(piece, key)).to("cpu", copy=True)
        bits = torch.zeros(numel, dtype=torch.int32, device=self.process.device)
        if piece is not None:
            part = piece.view_of(self._tensor_of(piece, key)).to(self.process.device, torch.float32)
            bits.narrow(0, piece.offset, piece.length).copy_(part.view(torch.int32))
        distributed.reduce(bits, dst=0)
        return bits.view(torch.float32).cpu()

    def _broadcast(self, name: str, shape: torch.Size, read: Callable[[str], Tensor]) -> Tensor:
        """Return a tensor that the main rank reads, on every rank."""
        kind = torch.int64 if name.startswith(f"{STEP}.") else torch.float32
        if self.process.is_main:
            tensor = read(name).to(self.process.device, kind).contiguous()
        else:
            tensor = torch.empty(shape, dtype=kind, device=self.process.device)
        distributed.broadcast(tensor, src=0)
        return tensor

    def _refresh_parameters(self) -> None:
        """Set the parameters that the networks compute with to the masters."""
        if self.is_zero3:
            for group in range(len(self.wrapper.fp32_partitioned_groups_flat)):
                self.wrapper._reassign_or_swap_out_partitioned_parameters(group)
        elif self.partitioned:
            self.wrapper.update_lp_params()
        else:
            for _, parameter in self.named:
                parameter.data.copy_(self._masters.get(id(parameter), parameter).data)


def _unflattened_masters(wrapper: Any) -> dict[int, Tensor]:
    """Return DeepSpeed's fp32 copies of bf16 parameters without ZeRO, by the identity of the parameter."""
    low_groups, high_groups = getattr(wrapper, "fp16_groups", ()), getattr(wrapper, "fp32_groups", ())
    groups = zip(low_groups, high_groups, strict=True)
    return {id(low): high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter; ZeRO 3 leaves an empty one in its place."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
