"""Keeps the family's weights in the repository: one safetensors file a part, in half precision.

A part's name is its file's name. Nothing is built or trained here.
"""

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

FOLDER: Final = Path(__file__).parent / "weights"
PARTS: Final = ("dit_high", "dit_low", "vae", "text", "detector", "recogniser", "landmarks")
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def load(part: str, folder: Path = FOLDER) -> dict[str, Tensor]:
    """The tensors of a part, in fp32, in the order of their names."""
    return {name: value.float() for name, value in sorted(load_file(folder / f"{part}.safetensors").items())}


def save(part: str, state: dict[str, Tensor], folder: Path = FOLDER) -> None:
    """Write a part in half precision.

    Raises:
        ValueError: a number is too large for half precision, or not a number.
    """
    halves = {name: value.detach().to(torch.float16).contiguous() for name, value in state.items()}
    broken = [name for name, value in halves.items() if not bool(value.isfinite().all())]
    if broken:
        raise ValueError(f"{part}: {broken[0]} does not fit half precision; train it again with a lower learning rate")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}.safetensors").write_bytes(to_bytes(halves))
