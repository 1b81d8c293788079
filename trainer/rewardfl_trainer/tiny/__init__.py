"""A trained, tiny Wan2.2-I2V-A14B with face networks and example clips, for demos and tests without a GPU.

`write(folder)` is all that others call. The weights were trained by `tiny.train`; see README.md beside this file.
"""

from pathlib import Path


def write(folder: Path) -> None:
    """Write the model family and its datasets below `folder` (created if needed)."""
    from rewardfl_trainer.tiny.layout import write as write_all  # noqa: PLC0415 - imports torch, which the CLI wants late

    write_all(folder)
