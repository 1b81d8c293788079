"""The random number generators of every rank, as JSON: Python's, numpy's, torch's on the CPU and on the device.

Nothing that is trained draws from them (noise.py derives all it needs from seeds); libraries and rewards of users may.
"""

import base64
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from .environment import Process
from .noise import derived_seed


def seed(value: int, process: Process) -> None:
    """Seed this rank's generators from `training.seed` and its rank."""
    random.seed(derived_seed("python", value, process.rank))
    np.random.seed(derived_seed("numpy", value, process.rank) % 2**32)
    torch.manual_seed(derived_seed("torch", value, process.rank))


def gathered(process: Process) -> list[dict[str, Any]]:
    """Return the state of every rank, in their order, on the main rank. A collective call."""
    states: list[Any] = [None] * process.world_size
    distributed.gather_object(captured(process.device), states if process.is_main else None, dst=0)
    return states


def restored(states: Sequence[dict[str, Any]], process: Process) -> None:
    """Set this rank's generators to its state among `states`. A rank that had none keeps its own."""
    if process.rank < len(states):
        restore(states[process.rank], process.device)


def captured(device: torch.device) -> dict[str, Any]:
    """Return the state of this process's generators."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encoded(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _encoded(torch.cuda.get_rng_state(device))
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Set this process's generators."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decoded(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_decoded(state["cuda"]), device)


def _encoded(state: Tensor) -> str:
    return base64.b64encode(bytes(state.numpy())).decode()


def _decoded(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
