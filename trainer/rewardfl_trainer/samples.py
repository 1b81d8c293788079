"""Videos of given rows at given moments of a training, always from the same noises, and their scores.

The noise is never one that is trained with. Must not change anything that is trained.
"""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from .disk import write_json
from .environment import Process
from .files import SAMPLES_FOLDER
from .preparation import Preparer
from .rewards.composition import Rewards
from .rollout import Rollout
from .uploads import Uploads
from .video import write_video

SAMPLE_DRAW = 0
"""Which noise of its row a sample video gets."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleScore:
    """What a sample video scored."""

    row: int
    draw: int
    """Which of the row's noises it was generated from."""
    prompt: str
    video: str | None
    """Its file in the samples folder; null where it was not written."""
    score: float
    """Mean of the rewards' scores by weight."""
    rewards: dict[str, float]
    """Each reward's score."""
    frame_scores: list[float | None]
    """The first reward's score of each frame; null where it has none, as in a frame without a face."""
    no_face_fraction: float | None
    """null where no reward looks for faces."""
    boxes: list[list[float] | None] | None = None
    """The face of each frame, in pixels: left, top, right, bottom; null in a frame without one, and where no reward looks for
    faces."""


@dataclass(frozen=True)
class Sampler:
    """Generates the sample videos.

    Attributes:
        uploads: takes the videos and scores that are written.
        folder: local folder of the results.
        lockstep: every rank generates every video, because ZeRO 3 needs all ranks for each forward pass.
    """

    rollout: Rollout
    preparer: Preparer
    reward: Rewards
    uploads: Uploads
    folder: Path
    process: Process
    lockstep: bool

    def generate(
        self,
        positions: Sequence[int],
        moment: str,
        draws: Sequence[int] = (SAMPLE_DRAW,),
        num_videos: int | None = None,
    ) -> list[SampleScore]:
        """Generate and score the videos of the rows at `positions`, shared out over the ranks. Every rank gets all scores.

        A collective call. Each rank uploads the videos it made, and the main one `samples/<moment>.json`.

        Args:
            positions: which rows.
            moment: name of the videos' folder: before, after, step-100.
            draws: which noises of each row.
            num_videos: of so many rows the video from the first noise is written; None: of all.
        """
        mine: list[SampleScore] = []
        shown = set(positions[:num_videos])
        for number, (position, draw) in enumerate(itertools.product(positions, draws)):
            if self.lockstep or number % self.process.world_size == self.process.rank:
                ours = not self.lockstep or self.process.is_main
                mine.append(self._generate(position, draw, moment, write=ours and position in shown and draw == draws[0]))
        everyone: list[list[SampleScore] | None] = [None] * self.process.world_size
        distributed.all_gather_object(everyone, mine)
        scores: dict[tuple[int, int], SampleScore] = {}
        for score in itertools.chain.from_iterable(part or [] for part in everyone):
            scores.setdefault((score.row, score.draw), score)  # in lockstep every rank has each; the main one wrote it
        ordered = [scores[key] for key in sorted(scores)]
        if self.process.is_main and ordered:
            write_json(self.folder / SAMPLES_FOLDER / f"{moment}.json", [asdict(score) for score in ordered])
            self._upload(f"{moment}.json")
            logger.info("reward of the sample videos (%s): %.4f", moment, mean_score(ordered))
        return ordered

    @torch.no_grad()
    def _generate(self, position: int, draw: int, moment: str, *, write: bool) -> SampleScore:
        """Generate, score and write one video."""
        prepared = self.preparer(position)
        video_B3THW = self.video(position, draw)
        scores = self.reward(video_B3THW, prepared.reference)
        frame_scores_T = next(iter(scores.results.values())).frame_scores_BT[0]
        name = f"row-{prepared.row.index}.mp4"
        if write:
            write_video(self.folder / SAMPLES_FOLDER / moment / name, video_B3THW[0])
            self._upload(f"{moment}/{name}")
        return SampleScore(
            row=prepared.row.index,
            draw=draw,
            prompt=prepared.row.prompt,
            video=f"{moment}/{name}" if write else None,
            score=scores.reward,
            rewards={name: float(result.score_B.mean()) for name, result in scores.results.items()},
            frame_scores=[None if math.isnan(score) else score for score in frame_scores_T.tolist()],
            no_face_fraction=None if scores.faces is None else scores.faces.no_face_fraction,
            boxes=None if scores.faces is None else boxes_of(scores.faces.boxes_BT4[0]),
        )

    @torch.no_grad()
    def video(self, position: int, draw: int = SAMPLE_DRAW) -> Tensor:
        """Return the sample video B3THW of a row; always the same noise."""
        start = self.preparer.start(position, draw=draw, purpose="sample")
        return self.rollout.video(start.condition, start.latents_BCthw, start.first_step)

    def _upload(self, name: str) -> None:
        """Have a file of the samples folder uploaded, while training goes on."""
        self.uploads.submit_file(self.folder / SAMPLES_FOLDER / name, f"{SAMPLES_FOLDER}/{name}")


def boxes_of(boxes_T4: Tensor) -> list[list[float] | None]:
    """Return the box of each frame to a tenth of a pixel; None where it has none."""
    return [None if any(map(math.isnan, box)) else [round(value, 1) for value in box] for box in boxes_T4.tolist()]


def mean_score(scores: Sequence[SampleScore]) -> float:
    """Return the mean score of sample videos."""
    return sum(score.score for score in scores) / len(scores)
