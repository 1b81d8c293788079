"""ROLL's conventions of the face reward: videos that are not square, missing faces, large frames; and the parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from rewardfl_trainer.rewards.composition import Rewards
from rewardfl_trainer.rewards.conventions import CORRECT_FACES, ROLL_FACES
from rewardfl_trainer.rewards.detection import largest_faces, letterbox
from rewardfl_trainer.rewards.face import FaceReward
from tests.unit import roll_recipe
from tests.unit.datasets import parameters
from tests.unit.face_networks import frame_with_marks, write_detector, write_recogniser

HEIGHT, WIDTH = 64, 80
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("antelopev2")
    write_detector(path)
    write_recogniser(path)
    return path


def video(*marks: tuple[int, int] | None, seed: int = 0) -> Tensor:
    """A video 1 3 T H W with a face (its middle) or none in each frame."""
    frames = [frame_with_marks(HEIGHT, WIDTH, red=mark, seed=100 * seed + index) for index, mark in enumerate(marks)]
    return torch.stack(frames, dim=1)[None]


TRUTH = video((30, 40), (31, 41), (28, 36), None, (30, 30), seed=1)
GENERATED = video((30, 42), (26, 41), None, (33, 38), (36, 50), seed=2)


def test_faceless_frames_leave_rolls_mean_and_count_with_the_penalty_otherwise(folder: Path) -> None:
    scores = {}
    for conventions in (ROLL_FACES, CORRECT_FACES):
        reward = FaceReward.load(folder, missing_face_penalty=-1.0, conventions=conventions)
        scores[conventions] = float(reward(GENERATED, reward.reference(TRUTH)).score_B)
    frames = [part[0].transpose(0, 1) for part in (GENERATED, TRUTH)]
    assert scores[ROLL_FACES] == pytest.approx(float(roll_recipe.score(folder, *frames)), abs=1e-4)
    assert scores[CORRECT_FACES] < scores[ROLL_FACES] - 0.1


def test_rolls_first_frame_of_the_ground_truth_never_counts(folder: Path) -> None:
    first_alone = video((30, 40), None, None)
    found = [
        FaceReward.load(folder, conventions=how).reference(first_alone).found_BS.tolist() for how in (ROLL_FACES, CORRECT_FACES)
    ]
    assert found == [[[False, False, False]], [[True, False, False]]]


def test_rolls_letterbox_is_mid_grey_in_the_range_of_the_frame() -> None:
    inputs, scale = letterbox(torch.ones(1, 3, 48, 96), ROLL_FACES.detector)
    assert scale == 640 / 96
    assert torch.equal(inputs[:, :, :320], torch.ones(1, 3, 320, 640))
    assert torch.equal(inputs[:, :, 320:], torch.zeros(1, 3, 320, 640))


def test_roll_smooths_frames_that_are_made_smaller_and_insightface_does_not() -> None:
    frames = torch.rand(1, 3, 1280, 960, generator=torch.Generator().manual_seed(0)) * 2 - 1
    size = (640, 480)
    smoothed = torchvision.transforms.functional.resize(frames, list(size), antialias=True)
    found, _ = letterbox(frames, ROLL_FACES.detector)
    torch.testing.assert_close(found[..., :480], smoothed)
    correct, _ = letterbox(frames)
    assert float(correct[..., :480].std()) > 1.2 * float(found[..., :480].std())


def test_roll_does_not_count_the_last_pixel_of_a_box() -> None:
    """10x10 in 10x26 overlap by 0.385: both stay. Counted inclusively, 11x11 in 11x27 overlap by 0.407 and one goes."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 26.0]]])
    found, *_ = largest_faces(torch.tensor([[0.9, 0.8]]), boxes, torch.zeros(1, 2, 5, 2), ROLL_FACES.detector.inclusive_pixel)
    assert found[0, 3].item() == 26


@pytest.mark.parametrize(
    ("changes", "order", "penalty"),
    [({}, "rgb", 0.0), ({"face_channel_order": "bgr"}, "bgr", 0.0), ({"missing_face_penalty": -0.5}, "rgb", -0.5)],
)
def test_the_parameters_choose_channel_order_and_penalty(
    folder: Path, changes: dict[str, Any], order: Any, penalty: float
) -> None:
    rewards = Rewards.load(parameters(reward_model_path=str(folder), **changes), CPU)
    expected = FaceReward.load(folder, channel_order=order, missing_face_penalty=penalty)
    score = float(expected(GENERATED, expected.reference(TRUTH)).score_B)
    assert rewards(GENERATED, rewards.reference(TRUTH)).reward == pytest.approx(score)
