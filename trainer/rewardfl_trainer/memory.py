"""Trading computation and CPU memory for accelerator memory: activation checkpointing, with or without offload.

Changes no result. Nothing random may run inside a checkpoint (no model here has active dropout), so no generator state is kept.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from rewardfl_api.training import TrainingParameters

ResultT = TypeVar("ResultT")

BLOCKS_KEPT, BLOCKS_OFFLOADED = 4, 2
"""Blocks in one checkpoint unless the parameters say: at A14B's size the backward pass through the blocks then needs about as
much memory as that through the decoder (docs/decisions/0076)."""


@dataclass(frozen=True)
class Checkpointing:
    """How activations are kept for the backward pass."""

    enabled: bool = True
    """Recompute them instead of keeping them."""
    offload: bool = False
    """Keep the inputs of the recomputation in CPU memory."""
    blocks: int = 1
    """Transformer blocks in one checkpoint: only the first one's input is kept, and all of them are recomputed together."""

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Checkpointing":
        """Return what the training parameters ask for."""
        offload = parameters.use_gradient_checkpointing_offload
        blocks = parameters.gradient_checkpointing_blocks or (BLOCKS_OFFLOADED if offload else BLOCKS_KEPT)
        return cls(parameters.use_gradient_checkpointing, offload, blocks)

    def run(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Return function(*arguments), keeping only the arguments for the backward pass."""
        if not self.enabled or not torch.is_grad_enabled():
            return function(*arguments)
        with self.hooks(*arguments) if self.offload else nullcontext():
            result: ResultT = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result

    def hooks(self, *arguments: Any) -> AbstractContextManager[Any]:
        """Return what moves saved tensors to the CPU and back."""
        pinned = any(isinstance(argument, torch.Tensor) and argument.is_cuda for argument in arguments)
        hooks: AbstractContextManager[Any] = torch.autograd.graph.save_on_cpu(pin_memory=pinned)
        return hooks
