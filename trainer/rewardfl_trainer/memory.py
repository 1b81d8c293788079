"""Trading computation and CPU memory for accelerator memory: activation checkpointing, with or without offload (`offload.py`).

Changes no result. Nothing random may run inside a checkpoint (no model here has active dropout), so no generator state is kept.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from rewardfl_api.training import TrainingParameters

from .offload import Offload

ResultT = TypeVar("ResultT")

BLOCKS_KEPT, BLOCKS_OFFLOADED = 4, 2
"""Blocks in one checkpoint unless the parameters say: at A14B's size the backward pass through the blocks then needs about as
much memory as that through the decoder (docs/decisions/0076)."""

ATTENTION_KEPT = 4
"""Every so many-th checkpoint keeps its self-attention unless the parameters say: what is left of 76 GB at A14B's size."""

_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def _attention_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what torch's checkpoint runs the forward pass and the recomputation in."""
    contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return contexts


def _policy(_context: SelectiveCheckpointContext, operation: Any, *arguments: Any, **_keywords: Any) -> CheckpointPolicy:
    """Keep the outputs of self-attention, whose queries and keys are as many: small tensors of a long computation."""
    kept = operation in _ATTENTION and arguments[0].shape == arguments[1].shape
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@dataclass(frozen=True)
class Checkpointing:
    """How activations are kept for the backward pass."""

    enabled: bool = True
    """Recompute them instead of keeping them."""
    offload: bool = False
    """Keep the inputs of the recomputation in CPU memory."""
    blocks: int = 1
    """Transformer blocks in one checkpoint: only the first one's input is kept, and all of them are recomputed together."""

    attention_every: int = 0
    """In every n-th checkpoint of blocks the outputs of self-attention are kept instead of computed again; 0: in none."""

    mover: Offload = field(default_factory=Offload, compare=False, repr=False)
    """Moves what is offloaded."""

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Checkpointing":
        """Return what the training parameters ask for."""
        offload = parameters.use_gradient_checkpointing_offload
        blocks = parameters.gradient_checkpointing_blocks or (BLOCKS_OFFLOADED if offload else BLOCKS_KEPT)
        attention = parameters.gradient_checkpointing_attention
        if attention is None:
            attention = 0 if offload else ATTENTION_KEPT
        return cls(parameters.use_gradient_checkpointing, offload, blocks, attention)

    def keeps_attention(self, number: int) -> bool:
        """Whether the checkpoint of that number, counted from 0, keeps the outputs of its self-attention."""
        return self.attention_every > 0 and number % self.attention_every == 0

    def run(self, function: Callable[..., ResultT], *arguments: Any, keep_attention: bool = False) -> ResultT:
        """Return function(*arguments), keeping only the arguments for the backward pass.

        Args:
            function: what is computed again in the backward pass.
            arguments: its arguments.
            keep_attention: whether the outputs of self-attention are kept as well.
        """
        if not self.enabled or not torch.is_grad_enabled():
            return function(*arguments)
        with self.mover.hooks() if self.offload else nullcontext():
            contexts = _attention_contexts if keep_attention else noop_context_fn
            result: ResultT = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return result
