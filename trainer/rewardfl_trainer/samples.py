"""Videos before and after training, of the same rows with the same noise, and their scores.

The noise is never one that is trained with. Must not change anything that is trained.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, distributed

from .checkpoint import write_json
from .environment import Process
from .preparation import Preparer
from .rewards.composition import Rewards
from .rollout import Rollout
from .storage import Storage, join
from .video import write_video

SAMPLES_FOLDER = "samples"
SAMPLE_DRAW = 0
"""Which noise of its row a sample video gets."""

Moment = Literal["before", "after"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleScore:
    """What a sample video scored."""

    row: int
    prompt: str
    video: str
    score: float
    """Mean of the rewards' scores by weight."""
    rewards: dict[str, float]
    """Each reward's score."""
    frame_scores: list[float | None]
    """The first reward's score of each frame; null where it has none, as in a frame without a face."""
    no_face_fraction: float | None
    """null where no reward looks for faces."""


@dataclass(frozen=True)
class Sampler:
    """Generates the sample videos.

    Attributes:
        folder: local folder of the results; `output` is where they are uploaded to.
        lockstep: every rank generates every video, because ZeRO 3 needs all ranks for each forward pass.
    """

    rollout: Rollout
    preparer: Preparer
    reward: Rewards
    storage: Storage
    folder: Path
    output: str
    process: Process
    lockstep: bool

    def generate(self, positions: Sequence[int], moment: Moment) -> list[SampleScore]:
        """Generate the videos of the rows at `positions`, shared out over the ranks. Every rank gets all scores.

        A collective call. Each rank uploads the videos it made, and the main one `samples/<moment>.json`.
        """
        mine: list[SampleScore] = []
        for number, position in enumerate(positions):
            if self.lockstep or number % self.process.world_size == self.process.rank:
                score = self._generate(position, moment, write=not self.lockstep or self.process.is_main)
                mine.append(score)
        everyone: list[list[SampleScore] | None] = [None] * self.process.world_size
        distributed.all_gather_object(everyone, mine)
        scores = {score.row: score for part in everyone for score in part or []}
        ordered = [scores[row] for row in sorted(scores)]
        if self.process.is_main and ordered:
            write_json(self.folder / SAMPLES_FOLDER / f"{moment}.json", [asdict(score) for score in ordered])
            self._upload(f"{moment}.json")
            logger.info("reward %s training: %.4f", moment, mean_score(ordered))
        return ordered

    @torch.no_grad()
    def _generate(self, position: int, moment: Moment, *, write: bool) -> SampleScore:
        """Generate, score and write one video."""
        prepared = self.preparer(position)
        video_B3THW = self.video(position)
        scores = self.reward(video_B3THW, prepared.reference)
        frame_scores_T = next(iter(scores.results.values())).frame_scores_BT[0]
        name = f"row-{prepared.row.index}.mp4"
        if write:
            write_video(self.folder / SAMPLES_FOLDER / moment / name, video_B3THW[0])
            self._upload(f"{moment}/{name}")
        return SampleScore(
            row=prepared.row.index,
            prompt=prepared.row.prompt,
            video=f"{moment}/{name}",
            score=scores.reward,
            rewards={name: float(result.score_B.mean()) for name, result in scores.results.items()},
            frame_scores=[None if math.isnan(score) else score for score in frame_scores_T.tolist()],
            no_face_fraction=None if scores.faces is None else scores.faces.no_face_fraction,
        )

    @torch.no_grad()
    def video(self, position: int) -> Tensor:
        """Return the sample video B3THW of a row; always the same noise."""
        start = self.preparer.start(position, draw=SAMPLE_DRAW, purpose="sample")
        return self.rollout.video(start.condition, start.latents_BCthw, start.first_step)

    def _upload(self, name: str) -> None:
        """Upload a file of the samples folder."""
        self.storage.upload_file(self.folder / SAMPLES_FOLDER / name, join(join(self.output, SAMPLES_FOLDER), name))


def mean_score(scores: Sequence[SampleScore]) -> float:
    """Return the mean score of sample videos."""
    return sum(score.score for score in scores) / len(scores)
