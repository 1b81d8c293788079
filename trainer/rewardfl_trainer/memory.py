"""Trading computation and CPU memory for accelerator memory: activation checkpointing, with or without offload.

Changes no result. Nothing random may run inside a checkpoint (no model here has active dropout), so no generator state is kept.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Checkpointing:
    """How activations are kept for the backward pass."""

    enabled: bool = True
    """Recompute them instead of keeping them."""
    offload: bool = False
    """Keep the inputs of the recomputation in CPU memory."""

    def run(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Return function(*arguments), keeping only the arguments for the backward pass."""
        if not self.enabled or not torch.is_grad_enabled():
            return function(*arguments)
        pinned = any(isinstance(argument, torch.Tensor) and argument.is_cuda for argument in arguments)
        hooks = torch.autograd.graph.save_on_cpu(pin_memory=pinned) if self.offload else nullcontext()
        with hooks:
            result: ResultT = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result
