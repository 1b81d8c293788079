"""The face reward: its score against insightface's recipe, its gradient, and what happens without faces."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewardfl_trainer.rewards.alignment import invert_similarity, similarity_to_template
from rewardfl_trainer.rewards.base import Reward
from rewardfl_trainer.rewards.face import FaceReference, FaceReward
from tests.unit import insightface_recipe
from tests.unit.face_networks import frame_with_marks, write_detector, write_recogniser

HEIGHT, WIDTH = 64, 80
PENALTY = -0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("antelopev2")
    write_detector(path)
    write_recogniser(path)
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> FaceReward:
    return FaceReward.load(folder, missing_face_penalty=PENALTY)


def video(*marks: tuple[int, int] | None, seed: int = 0) -> Tensor:
    """A video 1 3 T H W with a face (its middle) or none in each frame."""
    frames = [frame_with_marks(HEIGHT, WIDTH, red=mark, seed=100 * seed + index) for index, mark in enumerate(marks)]
    return torch.stack(frames, dim=1)[None]


TRUTH = video((30, 40), (31, 41), (28, 36), (33, 44), (30, 30), seed=1)
GENERATED = video((30, 42), (26, 41), None, (33, 38), (36, 50), seed=2)
FACELESS = video(None, None, None, seed=3)


def pictures(video_B3THW: Tensor) -> list[insightface_recipe.Array]:
    return [(frame.permute(1, 2, 0).double().numpy() + 1) * 127.5 for frame in video_B3THW[0].unbind(1)]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_score_equals_insightface_frame_by_frame(folder: Path, order: str) -> None:
    reward = FaceReward.load(folder, channel_order="bgr" if order == "bgr" else "rgb", missing_face_penalty=PENALTY)

    result = reward(GENERATED, reward.reference(TRUTH))

    expected = insightface_recipe.score(folder, pictures(GENERATED), pictures(TRUTH), PENALTY, bgr=order == "bgr")
    assert result.score_B.item() == pytest.approx(expected, abs=2e-4)
    assert result.no_face_fraction == pytest.approx(0.2)


def test_channel_order_changes_the_score(folder: Path) -> None:
    scores = []
    for order in ("rgb", "bgr"):
        reward = FaceReward.load(folder, channel_order="bgr" if order == "bgr" else "rgb")
        scores.append(reward(GENERATED, reward.reference(TRUTH)).score_B.item())

    assert abs(scores[0] - scores[1]) > 1e-2


def test_a_video_scores_one_against_a_single_frame_of_its_own_face(reward: FaceReward) -> None:
    still = video((30, 40)).expand(-1, -1, 3, -1, -1)

    assert reward(still, reward.reference(still)).score_B.item() == pytest.approx(1.0, abs=1e-5)


def test_diagnosis_says_where_the_face_was_and_what_each_frame_scored(reward: FaceReward) -> None:
    result = reward(GENERATED, reward.reference(TRUTH))

    assert result.frame_scores_BT.isnan().tolist() == [[False, False, True, False, False]]
    assert result.boxes_BT4.isnan().any(dim=-1).tolist() == [[False, False, True, False, False]]
    assert result.keypoints_BT52.shape == (1, 5, 5, 2)
    middle = (result.boxes_BT4[0, 0, :2] + result.boxes_BT4[0, 0, 2:]) / 2
    torch.testing.assert_close(middle, torch.tensor([42.0, 30.0]), atol=3, rtol=0)
    assert not result.frame_scores_BT.requires_grad
    assert result.metrics() == {"reward": pytest.approx(result.score_B.item()), "no_face_fraction": pytest.approx(0.2)}


def test_score_is_the_mean_over_frames_with_the_penalty_for_faceless_ones(reward: FaceReward) -> None:
    result = reward(GENERATED, reward.reference(TRUTH))

    expected = result.frame_scores_BT.nan_to_num(PENALTY).mean()
    assert result.score_B.item() == pytest.approx(expected.item())


def test_hiding_the_face_in_one_frame_never_pays(reward: FaceReward) -> None:
    reference = reward.reference(TRUTH)
    shown = reward(TRUTH, reference)
    worst = int(shown.frame_scores_BT[0].argmin())
    hidden_video = TRUTH.clone()
    hidden_video[:, :, worst] = FACELESS[:, :, 0]

    hidden = reward(hidden_video, reference)

    assert hidden.no_face_fraction == pytest.approx(0.2)
    loss = (shown.frame_scores_BT[0, worst].item() - PENALTY) / 5
    assert loss > 0
    assert hidden.score_B.item() == pytest.approx(shown.score_B.item() - loss, abs=1e-5)


def test_video_without_any_face_scores_the_penalty_with_a_zero_gradient(reward: FaceReward) -> None:
    faceless = FACELESS.clone().requires_grad_()

    result = reward(faceless, reward.reference(TRUTH))
    result.score_B.sum().backward()

    assert result.score_B.item() == PENALTY
    assert result.no_face_fraction == 1.0
    assert faceless.grad is not None
    assert (faceless.grad == 0).all()


def test_nan_in_a_generated_video_is_not_hidden_by_the_penalty(reward: FaceReward) -> None:
    broken = FACELESS.clone()
    broken[0, 0, 1, 3, 3] = torch.nan

    assert reward(broken, reward.reference(TRUTH)).score_B.isnan().all()


def test_ground_truth_frame_zero_is_left_out_of_the_reference(reward: FaceReward) -> None:
    other_start = torch.cat((video((20, 60), seed=9), TRUTH[:, :, 1:]), dim=2)

    torch.testing.assert_close(reward.reference(TRUTH).mean_BE(), reward.reference(other_start).mean_BE())
    assert reward.reference(TRUTH).found_BS.tolist() == [[False, True, True, True, True]]


def test_ground_truth_frame_zero_counts_where_no_other_frame_has_a_face(reward: FaceReward) -> None:
    only_start = video((30, 40), None, None, seed=1)

    reference = reward.reference(only_start)

    assert reference.found_BS.tolist() == [[True, False, False]]
    assert reward(only_start, reference).frame_scores_BT[0, 0].item() == pytest.approx(1.0, abs=1e-5)


def test_ground_truth_without_faces_gives_the_penalty_and_no_crash(reward: FaceReward) -> None:
    generated = GENERATED.clone().requires_grad_()

    result = reward(generated, reward.reference(FACELESS))
    result.score_B.sum().backward()

    assert result.score_B.item() == PENALTY


def test_a_batch_scores_as_its_videos_alone(reward: FaceReward) -> None:
    generated = torch.cat((GENERATED, TRUTH, FACELESS[:, :, [0, 1, 2, 0, 1]]))
    truth = torch.cat((TRUTH, GENERATED, TRUTH))

    together = reward(generated, reward.reference(truth))

    for index in range(3):
        alone = reward(generated[index : index + 1], reward.reference(truth[index : index + 1]))
        torch.testing.assert_close(together.score_B[index : index + 1], alone.score_B, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.keypoints_BT52[index : index + 1], alone.keypoints_BT52, equal_nan=True)


def test_frames_scored_a_few_at_a_time_give_the_same_score_and_gradient(reward: FaceReward) -> None:
    reference = reward.reference(TRUTH)
    whole, pieces = GENERATED.clone().requires_grad_(), GENERATED.clone().requires_grad_()

    score = reward(whole, reference).score_B.sum()
    score.backward()
    parts = [reward.frame_scores(chunk, reference)[0].sum() / 5 for chunk in pieces.split(2, dim=2)]
    for part in parts:
        part.backward()

    torch.testing.assert_close(sum(parts), score)
    torch.testing.assert_close(whole.grad, pieces.grad)


def test_gradient_agrees_with_finite_differences_in_double_precision(folder: Path) -> None:
    reward = FaceReward.load(folder, missing_face_penalty=PENALTY, dtype=torch.float64)
    generated = GENERATED[:, :, :3].double().requires_grad_()
    reference = reward.reference(TRUTH.double())
    direction = torch.randn(generated.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    direction[:, 2] = 0  # this detector's points move with the blue; the gradient is that of points held still

    (gradient,) = torch.autograd.grad(reward(generated, reference).score_B.sum(), generated)
    with torch.no_grad():
        steps = [reward(generated + sign * 1e-6 * direction, reference) for sign in (1, -1)]

    torch.testing.assert_close(steps[0].keypoints_BT52, steps[1].keypoints_BT52, equal_nan=True, rtol=0, atol=0)
    slope = (steps[0].score_B - steps[1].score_B).sum() / 2e-6
    assert abs((gradient * direction).sum().item()) > 1e-3
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=0)


def test_gradient_lies_on_the_face_alone(reward: FaceReward) -> None:
    generated = GENERATED.clone().requires_grad_()

    result = reward(generated, reward.reference(TRUTH))
    result.score_B.sum().backward()

    assert generated.grad is not None
    assert (generated.grad[:, :, 2] == 0).all()
    matrices, _ = similarity_to_template(result.keypoints_BT52[0, [0]])
    corners = torch.tensor([[0, 0, 1], [111, 0, 1], [0, 111, 1], [111, 111, 1.0]]) @ invert_similarity(matrices)[0].T
    low, high = corners.amin(dim=0).floor() - 1, corners.amax(dim=0).ceil() + 1
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    inside = (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])
    gradient = generated.grad[0, :, 0].abs().sum(dim=0)
    assert (gradient[~inside] == 0).all()
    assert 100 < (gradient > 0).sum() <= inside.sum() < HEIGHT * WIDTH


def test_climbing_the_gradient_raises_the_score(reward: FaceReward) -> None:
    reference = reward.reference(TRUTH)
    pixels = GENERATED.clone()
    before = reward(pixels, reference).score_B.item()
    for _ in range(5):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(reward(pixels, reference).score_B.sum(), pixels)
        pixels = (pixels.detach() + 0.02 * gradient.sign()).clamp(-1, 1)

    assert reward(pixels, reference).score_B.item() > before + 0.05


def test_reward_stays_frozen_and_in_evaluation(reward: FaceReward) -> None:
    assert isinstance(reward, Reward)
    reward.train()

    generated = GENERATED.clone().requires_grad_()
    reward(generated, reward.reference(TRUTH)).score_B.sum().backward()

    assert not any(module.training for module in reward.modules())
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_bf16_videos_are_scored_in_full_precision(reward: FaceReward) -> None:
    rounded = GENERATED.bfloat16()
    reference = reward.reference(TRUTH)
    expected = reward(rounded.float(), reference)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = reward(rounded.requires_grad_(), reference)
        result.score_B.sum().backward()

    assert result.score_B.dtype == torch.float32
    torch.testing.assert_close(result.score_B, expected.score_B, atol=1e-5, rtol=0)
    assert rounded.grad is not None
    assert rounded.grad.dtype == torch.bfloat16


def test_mean_of_the_reference_gives_the_mean_of_the_cosines(reward: FaceReward) -> None:
    reference: FaceReference = reward.reference(TRUTH)
    embedding = reference.embeddings_BSE[0, 1]

    cosines = torch.stack([embedding @ other for other in reference.embeddings_BSE[0, 1:]])

    torch.testing.assert_close(embedding @ reference.mean_BE()[0], cosines.mean())
