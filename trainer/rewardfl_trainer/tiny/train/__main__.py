"""`python -m rewardfl_trainer.tiny.train --part vae --out FOLDER` trains one part and stores it in FOLDER.

Order, since later parts see what earlier ones made: text, vae, detector, recogniser, dit. Without --out the repository's own
weights are replaced.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from rewardfl_trainer.tiny import store
from rewardfl_trainer.tiny.face_networks import Landmarks
from rewardfl_trainer.tiny.train import detector, dit, recogniser, text, vae
from rewardfl_trainer.tiny.train.loop import Budget

MANY: Final = 1_000_000
AVERAGE_DECAY: Final = 0.99
HIGH_CLIPS: Final = 768
LOW_CLIPS: Final = 256
LOW_STEPS: Final = 180


def train_vae(minutes: float, seed: int, out: Path) -> None:
    """Pictures, then clips; the scale of the latents is folded in."""
    state, _ = vae.train_pictures(_budget(minutes / 2, 5e-3), seed)
    state, _ = vae.train_clips(_budget(minutes / 2, 3e-3), seed + 1, vae.inflate(state))
    store.save("vae", vae.fold_scale(state, seed + 2), out)


def train_text(minutes: float, seed: int, out: Path) -> None:
    """Tokenizer and text encoder."""
    text.write_tokenizer(out)
    store.save("text", text.train(Budget(steps=150, learning_rate=3e-3, minutes=minutes), seed, out)[0], out)


def train_detector(minutes: float, seed: int, out: Path) -> None:
    """The face detector, and the landmark network as it is initialised: nothing reads its points."""
    torch.manual_seed(seed)
    store.save("landmarks", Landmarks().state_dict(), out)
    store.save("detector", detector.train(_budget(minutes, 2e-3), seed)[0], out)


def train_recogniser(minutes: float, seed: int, out: Path) -> None:
    """The face recogniser."""
    store.save("recogniser", recogniser.train(_budget(minutes, 2e-3), seed)[0], out)


def train_dit(minutes: float, seed: int, out: Path) -> None:
    """Both experts on the repository's VAE and text encoder; the low-noise one stops early, so that Reward FL has work to do."""
    high, _ = dit.train("high", _budget(minutes, 3e-3), seed, HIGH_CLIPS)
    store.save("dit_high", high, out)
    low, _ = dit.train("low", Budget(LOW_STEPS, 3e-3, minutes, average_decay=AVERAGE_DECAY), seed + 1, LOW_CLIPS)
    store.save("dit_low", low, out)


PARTS: Final[dict[str, tuple[Callable[[float, int, Path], None], float]]] = {
    "text": (train_text, 1),
    "vae": (train_vae, 17),
    "detector": (train_detector, 24),
    "recogniser": (train_recogniser, 7),
    "dit": (train_dit, 8),
}


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m rewardfl_trainer.tiny.train")
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--out", type=Path, default=store.FOLDER)
    parser.add_argument("--minutes", type=float, help="default: about what the committed weights took")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, minutes = PARTS[arguments.part]
    train(arguments.minutes or minutes, arguments.seed, arguments.out)


def _budget(minutes: float, learning_rate: float) -> Budget:
    return Budget(steps=MANY, learning_rate=learning_rate, minutes=minutes, average_decay=AVERAGE_DECAY)


if __name__ == "__main__":
    main()
