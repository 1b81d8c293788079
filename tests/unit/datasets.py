"""Small datasets for the tests: parameters, videos with and without a face, metadata.csv."""

from pathlib import Path

import torch

from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.video import write_video
from tests.unit.face_networks import frame_with_marks

NUM_FRAMES = 5


def parameters(**changes: object) -> TrainingParameters:
    return TrainingParameters.model_validate(
        {
            "num_frames": NUM_FRAMES,
            "max_pixels": 64 * 64,
            "reward_model_path": "/models/antelopev2",
            "model_paths": ["/models/wan22_paths.json"],
            "trainable_models": "dit",
            "lora_base_model": "dit",
            **changes,
        }
    )


def make_video(path: Path, *, face: bool = True, num_frames: int = NUM_FRAMES, height: int = 64, width: int = 64) -> None:
    mark = (height // 2, width // 2) if face else None
    frames = [frame_with_marks(height, width, red=mark, seed=index) for index in range(num_frames)]
    write_video(path, torch.stack(frames, dim=1))


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "metadata.csv").write_text(text, encoding=encoding)
    return folder
