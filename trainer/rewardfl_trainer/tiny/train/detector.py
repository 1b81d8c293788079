"""Trains the face detector on rendered frames, enlarged to 640x640 as the trainer feeds it.

Every face of the family fills a fifth to most of the frame, so it belongs to stride 32; strides 8 and 16 learn to stay silent.
Frames without a face (scenery, noise, faces blurred away) are shown as well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardfl_trainer.rewards.detection import INPUT_SIZE, anchors, letterbox
from rewardfl_trainer.tiny import faces
from rewardfl_trainer.tiny.degrade import blur, noise, warp
from rewardfl_trainer.tiny.face_networks import ANCHORS, STRIDES, Detector
from rewardfl_trainer.tiny.spec import FRAME_PIXELS, NUM_FRAMES
from rewardfl_trainer.tiny.train.loop import Budget, minimise

PEOPLE_PER_STEP = 4
FRAMES_OF_A_CLIP = 3
POSITIVE_RADIUS = 0.22
"""Positions this near the box's centre (in box sizes) are to find the face."""
IGNORED_RADIUS = 0.4
ENLARGED = INPUT_SIZE / FRAME_PIXELS
STRIDE_32_ANCHORS = ANCHORS * (INPUT_SIZE // STRIDES[-1]) ** 2
BOX_WEIGHT = 0.3
POINT_WEIGHT = 2.0
POSITIVE_WEIGHT = 4.0


def examples(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames [F,3,H,W], points [F,5,2], boxes [F,4] in input pixels, and whether there is a face [F]."""
    clips = faces.render(faces.identities(PEOPLE_PER_STEP, generator), generator)
    chosen = torch.randperm(NUM_FRAMES, generator=generator)[:FRAMES_OF_A_CLIP]
    frames = clips.video_B3THW[:, :, chosen].transpose(1, 2).flatten(0, 1)
    severity = torch.rand(len(frames), generator=generator) * 0.6
    frames = (blur, warp, noise)[int(torch.randint(3, (1,), generator=generator))](frames, severity, generator)
    points = (clips.points_BT5xy[:, chosen].flatten(0, 1) + 0.5) * ENLARGED - 0.5
    boxes = (clips.box_BTxyxy[:, chosen].flatten(0, 1) + 0.5) * ENLARGED - 0.5
    empty = faces.scenery(PEOPLE_PER_STEP, generator) * 2 - 1
    noisy = (torch.randn(2, 3, 16, 16, generator=generator) * 0.6).clamp(-1, 1)
    noisy = F.interpolate(noisy, (FRAME_PIXELS, FRAME_PIXELS), mode="bilinear")
    gone = F.interpolate(F.avg_pool2d(frames[:2], 16), (FRAME_PIXELS, FRAME_PIXELS), mode="bilinear")
    negatives = torch.cat([empty, noisy, gone])
    is_face = torch.cat([torch.ones(len(frames)), torch.zeros(len(negatives))])
    nothing = torch.zeros(len(negatives), 5, 2)
    return torch.cat([frames, negatives]), torch.cat([points, nothing]), torch.cat([boxes, nothing.flatten(1)[:, :4]]), is_face


def detection_loss(network: Detector, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Cross entropy of the scores, and absolute error of boxes and points where a face is, in strides."""
    frames, points, boxes, is_face = batch
    count = len(frames)
    outputs = [_per_frame(output, count) for output in network(letterbox(frames)[0])]
    scores, stride = torch.cat(outputs[:3], 1)[..., 0].clamp(1e-6, 1 - 1e-6), STRIDES[-1]
    centres = anchors()[0][-STRIDE_32_ANCHORS:]
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    distance = ((centres[None] - middle[:, None]) / size[:, None]).norm(dim=-1) + 10 * (1 - is_face[:, None])
    positive = distance < POSITIVE_RADIUS
    target, weight = torch.zeros_like(scores), torch.ones_like(scores)
    target[:, -STRIDE_32_ANCHORS:] = positive.float()
    weight[:, -STRIDE_32_ANCHORS:] += (POSITIVE_WEIGHT - 1) * positive.float()
    weight[:, -STRIDE_32_ANCHORS:] *= 1 - ((distance < IGNORED_RADIUS) & ~positive).float()
    found = (F.binary_cross_entropy(scores, target, reduction="none") * weight).sum() / positive.sum()
    where = positive.nonzero(as_tuple=True)
    near = centres[where[1]]
    box_target = torch.cat([near - boxes[where[0], :2], boxes[where[0], 2:] - near], -1) / stride
    point_target = (points[where[0]] - near[:, None]).flatten(1) / stride
    box_error = (outputs[5][where] - box_target).abs().mean()
    point_error = (outputs[8][where] - point_target).abs().mean()
    loss: Tensor = found + BOX_WEIGHT * box_error + POINT_WEIGHT * point_error
    return loss


def train(budget: Budget, seed: int, start: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Train from `start` or from scratch; returns the state and the losses."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Detector()
    if start is not None:
        network.load_state_dict(start)
    losses = minimise(network.parameters(), lambda step: detection_loss(network, examples(generator)), budget)
    return {name: value.detach() for name, value in network.state_dict().items()}, losses


def _per_frame(rows: Tensor, count: int) -> Tensor:
    """Rows in the order position, frame, anchor to [F, anchors, columns]."""
    return rows.view(-1, count, ANCHORS, rows.shape[-1]).transpose(0, 1).flatten(1, 2)
