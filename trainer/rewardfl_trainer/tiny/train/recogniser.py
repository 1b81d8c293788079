"""Trains the face recogniser: people apart, the same person together, and a spoilt face the less similar the more it is spoilt.

The last part makes it a smooth measure of quality, as a large ArcFace is for real faces.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardfl_trainer.rewards.alignment import crop_faces, similarity_to_template
from rewardfl_trainer.tiny import faces
from rewardfl_trainer.tiny.degrade import blur, noise, tint, warp
from rewardfl_trainer.tiny.face_networks import Recogniser
from rewardfl_trainer.tiny.spec import NUM_FRAMES
from rewardfl_trainer.tiny.train.loop import Budget, minimise

Spoil = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Frames, severities and a generator to spoilt frames."""

PEOPLE_PER_STEP = 24
TEMPERATURE = 0.1
DIFFERENT_AT_MOST = 0.1
LOST_AT_SEVERITY_1 = 0.9
"""Similarity that a face of severity 1 has lost."""
POINT_JITTER_PIXELS = 0.3
SPOILED_WEIGHT = 3.0


def crops(frames_F3HW: Tensor, points_F52: Tensor, generator: torch.Generator) -> Tensor:
    """Aligned faces, the points being off by about as much as the detector is."""
    jitter = torch.randn(points_F52.shape, generator=generator) * POINT_JITTER_PIXELS
    return crop_faces(frames_F3HW, similarity_to_template(points_F52 + jitter)[0])


def similarity_loss(network: Recogniser, generator: torch.Generator) -> Tensor:
    """Contrast between people plus regression of the similarity under spoiling."""
    clips = faces.render(faces.identities(PEOPLE_PER_STEP, generator), generator)
    first, second = torch.randint(NUM_FRAMES, (2,), generator=generator).tolist()
    one, two = clips.video_B3THW[:, :, first], clips.video_B3THW[:, :, second]
    severity = torch.rand(PEOPLE_PER_STEP, generator=generator)
    spoil = (blur, warp, noise, tint)[int(torch.randint(4, (1,), generator=generator))]
    views = torch.cat([one, two, spoil(two, severity, generator)])
    points_one, points_two = clips.points_BT5xy[:, first], clips.points_BT5xy[:, second]
    points = torch.cat([points_one, points_two, points_two])
    a, b, c = F.normalize(network(crops(views, points, generator)), dim=-1).chunk(3)
    similarity = a @ b.T
    people = torch.arange(PEOPLE_PER_STEP)
    apart = F.cross_entropy(similarity / TEMPERATURE, people) + F.cross_entropy(similarity.T / TEMPERATURE, people)
    others = similarity - 2 * torch.eye(PEOPLE_PER_STEP)
    margin = (others - DIFFERENT_AT_MOST).clamp(min=0).square().sum(1).mean()
    target = torch.cat([torch.ones(PEOPLE_PER_STEP), 1 - LOST_AT_SEVERITY_1 * severity])
    measured = torch.cat([similarity.diagonal(), (a * c).sum(1)])
    return 0.3 * apart + margin + SPOILED_WEIGHT * F.mse_loss(measured, target)


def train(budget: Budget, seed: int, start: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Train from `start` or from scratch; returns the state and the losses."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Recogniser()
    if start is not None:
        network.load_state_dict(start)
    losses = minimise(network.parameters(), lambda step: similarity_loss(network, generator), budget)
    return {name: value.detach() for name, value in network.state_dict().items()}, losses
