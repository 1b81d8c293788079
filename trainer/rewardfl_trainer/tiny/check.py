"""Uses the family as the trainer does, end to end: sample, decode, detect, align, embed, score, and optimise a little.

`python -m rewardfl_trainer.tiny.check DIR` prints the figures of README.md; tests call the same functions.

Shapes: B videos, T frames, H W pixels.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.conditioning import Condition, Conditioner
from rewardfl_trainer.data import load_rows
from rewardfl_trainer.models import Models, load_models
from rewardfl_trainer.rewards.face import FaceReference, FaceReward
from rewardfl_trainer.rollout import Rollout
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.tiny.spec import FACE_FOLDER, FRAME_PIXELS, HIGH_NOISE_BOUNDARY, MODEL_FOLDER, NUM_FRAMES
from rewardfl_trainer.trainable import Trainable, make_trainable
from rewardfl_trainer.video import from_uint8, read_frames

CPU: Final = torch.device("cpu")
EVALUATION_SEED: Final = 1000


@dataclass(frozen=True)
class Example:
    """A row of a dataset, ready to generate and to score."""

    condition: Condition
    reference: FaceReference
    video_13THW: Tensor


def parameters(folder: Path, **changes: Any) -> TrainingParameters:
    """The training parameters that fit the family written to `folder`."""
    values: dict[str, Any] = {
        "model_paths": [str(folder / "wan22_paths.json")],
        "tokenizer_path": str(folder / MODEL_FOLDER / "google/umt5-xxl"),
        "reward_model_path": str(folder / FACE_FOLDER),
        "trainable_models": "dit2",
        "lora_base_model": "dit2",
        "min_timestep_boundary": HIGH_NOISE_BOUNDARY,
        "max_timestep_boundary": 1.0,
        "num_frames": NUM_FRAMES,
        "max_pixels": FRAME_PIXELS**2,
        "use_gradient_checkpointing": False,
        "dtype": "fp32",
    }
    return TrainingParameters.model_validate({**values, **changes})


class Family:
    """The loaded family with a LoRA on dit2."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.parameters = folder, parameters(folder, **changes)
        self.models: Models = load_models(self.parameters, CPU)
        self.reward = FaceReward.load(folder / FACE_FOLDER)
        self.conditioner = Conditioner(self.models, self.parameters.extra_input_names, torch.float32, CPU)
        plan = Plan.of(self.parameters)
        self.trainable: Trainable = make_trainable(self.models, self.parameters, plan)
        self.rollout = Rollout(self.models, self.trainable, plan, self.parameters)

    @torch.no_grad()
    def examples(self, dataset: str) -> list[Example]:
        """Every row of a dataset."""
        return [self._example(row.video, row.prompt) for row in load_rows(self.folder / dataset)]

    @torch.no_grad()
    def scores(self, examples: list[Example], seeds: list[int]) -> list[float]:
        """The face score of every example and noise seed."""
        return [
            float(self.reward(self.rollout.video(example.condition, noise(example, seed)), example.reference).score_B)
            for example in examples
            for seed in seeds
        ]

    def optimise(self, examples: list[Example], steps: int, learning_rate: float, seed: int) -> list[float]:
        """Raise the score by gradient, one example and one new noise a step; returns the score of every step.

        The loss is the trainer's, with its default weights and the full KL.
        """
        trained = [parameter for _, parameter in self.trainable.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
        settings, seen = self.parameters, []
        for step in range(steps):
            example = examples[step % len(examples)]
            window = self.rollout.plan.window
            video, kl = self.rollout.trained_video(example.condition, noise(example, seed * 100_000 + step), list(window.steps))
            score = self.reward(video, example.reference).score_B.mean()
            loss = -(score - settings.reward_baseline) / settings.reward_scale * settings.reward_weight + settings.kl_weight * kl
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
            seen.append(float(score.detach()))
        return seen

    def _example(self, path: Path, prompt: str) -> Example:
        video_3THW = torch.stack([from_uint8(frame) for frame in read_frames(path, NUM_FRAMES)], dim=1)
        return Example(self.conditioner(prompt, video_3THW), self.reward.reference(video_3THW[None]), video_3THW[None])


def noise(example: Example, seed: int) -> Tensor:
    """The noise of a seed."""
    return torch.randn(example.condition.latent_shape, generator=torch.Generator().manual_seed(seed))


def main() -> None:
    """Print the scores before and after a short optimisation from three seeds."""
    parser = argparse.ArgumentParser(prog="python -m rewardfl_trainer.tiny.check")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        family = Family(arguments.directory, seed=seed)
        sets = {name: family.examples(name) for name in ("dataset", "dataset-eval")}
        fixed = [EVALUATION_SEED, EVALUATION_SEED + 1]
        before = {name: statistics.mean(family.scores(examples, fixed)) for name, examples in sets.items()}
        family.optimise(sets["dataset"], arguments.steps, arguments.learning_rate, seed)
        after = {name: statistics.mean(family.scores(examples, fixed)) for name, examples in sets.items()}
        print(f"seed {seed}: " + ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in sets), flush=True)


if __name__ == "__main__":
    main()
