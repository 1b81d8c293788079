"""LoRA files: read in any layout, written in the one that is asked for. `rewardfl export` is `convert_file`."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import ExportFormat

from .export import FILE_OF_LAYOUT, LORA_FILE
from .lora_layouts import Lora, read_lora, to_layout
from .model_files import read_tensors
from .safetensors_stream import write_file

SUFFIX = ".safetensors"


def load_lora(path: Path) -> tuple[Lora, dict[str, str]]:
    """Return a LoRA and what its file says about itself.

    Raises:
        RewardFLError: the file is missing (exit code 66) or holds no LoRA of this family (exit code 78).
    """
    if not path.is_file():
        raise RewardFLError(Reason.MODEL_NOT_FOUND, f"{path}: no such file.", "Name a LoRA file.", ExitCode.MISSING_INPUT)
    lora = read_lora(dict(read_tensors([path])), str(path))
    if path.suffix != SUFFIX:
        return lora, {}
    with safe_open(path, framework="pt") as file:
        return lora, dict(file.metadata() or {})


def convert_file(path: Path, layouts: Sequence[ExportFormat], folder: Path | None = None) -> list[Path]:
    """Write a LoRA in other layouts, beside the file or in `folder`: lora-comfyui.safetensors and so on.

    Raises:
        RewardFLError: see `load_lora`; or a file is there already (BadUsage, exit code 64), and then none is written.
    """
    lora, metadata = load_lora(path)
    folder = folder or path.parent
    targets = {layout: folder / _name(path, layout) for layout in layouts}
    refuse_existing(list(targets.values()))
    tensors = {layout: to_layout(lora, layout) for layout in layouts}
    for layout, target in targets.items():
        write_file(target, tensors[layout], {"format": "pt", **metadata})
    return list(targets.values())


def _name(path: Path, layout: ExportFormat) -> str:
    """Return the file name of a layout: that of `path` with the layout at its end instead of another one's."""
    stem = path.stem
    for known in FILE_OF_LAYOUT:
        stem = stem.removesuffix(f"-{known}")
    return f"{stem}{FILE_OF_LAYOUT[layout].removeprefix(LORA_FILE)}{SUFFIX}"


def refuse_existing(paths: Sequence[Path]) -> None:
    """Refuse to overwrite.

    Raises:
        RewardFLError: a file is there (BadUsage, exit code 64).
    """
    for path in paths:
        if path.exists():
            raise RewardFLError(Reason.BAD_USAGE, f"{path}: exists.", "Name another place, or remove it.", ExitCode.USAGE)
