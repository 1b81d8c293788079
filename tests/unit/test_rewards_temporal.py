"""Temporal consistency: flicker and a frozen picture cost, ordinary motion does not, and the gradient repairs a video."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rewardfl_trainer.rewards.temporal import TemporalConsistency

FRAMES, SIZE = 17, 64


def moving(speed: float = 2.0, *, frames: int = FRAMES, seed: int = 0) -> Tensor:
    """A smooth picture that shifts by `speed` pixels a frame, 1 3 T H W."""
    generator = torch.Generator().manual_seed(seed)
    picture = functional.interpolate(torch.randn(1, 3, 12, 12, generator=generator), (SIZE, 2 * SIZE), mode="bicubic") * 0.4
    columns = torch.arange(SIZE) / SIZE - 0.5
    rows = torch.arange(SIZE) / (SIZE / 2) - 1 + 1 / SIZE
    shown = []
    for frame in range(frames):
        y, x = torch.meshgrid(rows, columns + 2 * speed * frame / (2 * SIZE) - 0.25, indexing="ij")
        shown.append(functional.grid_sample(picture, torch.stack((x, y), dim=-1)[None], align_corners=False))
    return torch.stack(shown, dim=2).clamp(-1, 1)


def noise(strength: float, *shape: int, seed: int = 5) -> Tensor:
    return strength * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


REWARD = TemporalConsistency()
REAL = moving()
REFERENCE = REWARD.reference(REAL)


def score(video: Tensor) -> float:
    return float(REWARD(video, REFERENCE).score_B)


def flickering(strength: float) -> Tensor:
    """The brightness of each frame is off by its own amount."""
    return (REAL + noise(strength, 1, 1, FRAMES, 1, 1)).clamp(-1, 1)


def jittering(pixels: int) -> Tensor:
    """Each frame is shifted to and fro."""
    return torch.stack([REAL[:, :, t].roll(pixels if t % 2 else -pixels, dims=-1) for t in range(FRAMES)], dim=2)


def test_the_real_video_scores_one() -> None:
    assert score(REAL) == pytest.approx(1.0, abs=1e-6)


def test_another_video_that_moves_as_much_scores_high() -> None:
    assert score(moving(seed=1)) > 0.9
    assert score(REAL.flip(2)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("spoil", [flickering, lambda amount: jittering(int(20 * amount))], ids=["flicker", "jitter"])
def test_more_flicker_and_jitter_score_less_and_less(spoil: object) -> None:
    scores = [score(spoil(amount)) for amount in (0.05, 0.1, 0.2, 0.4)]  # type: ignore[operator]
    assert 1 > scores[0] > scores[1] > scores[2] > scores[3]
    assert scores[0] < 0.9
    assert scores[3] < 0.2


def test_a_still_picture_does_not_win() -> None:
    still = REAL[:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    assert score(still) < 0.1
    assert score(still) < score(flickering(0.05))
    assert score(moving(speed=0.5)) < score(moving(speed=1.5)) < 1


def test_where_the_real_video_is_still_a_still_one_scores_one_and_a_moving_one_does_not() -> None:
    still = REAL[:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    reference = REWARD.reference(still)
    assert float(REWARD(still, reference).score_B) == pytest.approx(1.0)
    assert float(REWARD(REAL, reference).score_B) < 0.2


def test_grain_that_the_decoder_does_not_reproduce_is_no_motion() -> None:
    grainy = REWARD.reference(REAL + noise(0.02, *REAL.shape))
    by_pixel = TemporalConsistency(cell_pixels=1)
    assert float(REWARD(REAL, grainy).score_B) > 0.9
    assert float(by_pixel(REAL, by_pixel.reference(REAL + noise(0.02, *REAL.shape))).score_B) < float(
        REWARD(REAL, grainy).score_B
    )


def test_a_frames_score_shows_where_the_glitch_is() -> None:
    glitch = REAL.clone()
    glitch[:, :, 8] += 0.3
    scores = REWARD(glitch, REFERENCE).frame_scores_BT[0]
    assert scores.isnan().nonzero().flatten().tolist() == [0, FRAMES - 1]
    assert int(scores[1:-1].argmin()) + 1 == 8
    assert float(scores[8]) < 0.3
    assert float(scores[3]) > 0.9


def test_metrics_say_how_much_moves_and_flickers_compared_with_the_real_video() -> None:
    still = REWARD(REAL[:, :, :1].expand(-1, -1, FRAMES, -1, -1), REFERENCE).metrics()
    wild = REWARD(flickering(0.4), REFERENCE).metrics()
    assert still["motion_ratio"] < 0.2
    assert wild["flicker_ratio"] > 5
    assert REWARD(REAL, REFERENCE).metrics() == pytest.approx({"reward": 1, "motion_ratio": 1, "flicker_ratio": 1}, abs=1e-5)


@pytest.mark.parametrize("video", [REAL, flickering(0.2), REAL[:, :, :1].repeat(1, 1, FRAMES, 1, 1), torch.zeros_like(REAL)])
def test_the_gradient_is_finite_everywhere_even_on_a_still_video(video: Tensor) -> None:
    leaf = video.clone().requires_grad_()
    REWARD(leaf, REFERENCE).score_B.sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())


def test_the_gradient_is_that_of_finite_differences() -> None:
    reward, video = TemporalConsistency(), flickering(0.1)[..., :16, :16].double().requires_grad_()
    reference = reward.reference(REAL[..., :16, :16].double())
    assert torch.autograd.gradcheck(
        lambda pixels: reward(pixels, reference).score_B, (video[:, :, :4].detach().requires_grad_(),)
    )
    (gradient,) = torch.autograd.grad(reward(video, reference).score_B.sum(), video)
    assert float(gradient.abs().max()) > 0


def test_climbing_the_gradient_takes_the_flicker_out() -> None:
    pixels = flickering(0.1)
    before = score(pixels)
    for _ in range(20):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(REWARD(pixels, REFERENCE).score_B.sum(), pixels)
        pixels = (pixels + 0.005 * gradient / gradient.abs().mean()).detach().clamp(-1, 1)
    assert score(pixels) > before + 0.1


def test_a_batch_scores_as_its_videos_alone() -> None:
    videos = torch.cat([REAL, flickering(0.1)])
    together = REWARD(videos, REWARD.reference(torch.cat([REAL, REAL])))
    torch.testing.assert_close(together.score_B, torch.tensor([score(REAL), score(flickering(0.1))]))


def test_bf16_videos_are_scored_in_fp32() -> None:
    result = REWARD(flickering(0.1).bfloat16(), REFERENCE)
    assert result.score_B.dtype == torch.float32
    assert float(result.score_B) == pytest.approx(score(flickering(0.1)), abs=0.02)


@pytest.mark.parametrize("cell", [0, 3, 32, "4"])
def test_a_cell_that_does_not_fit_every_video_is_refused(cell: object) -> None:
    with pytest.raises(ValueError, match=r"cell_pixels=.*use 1, 2, 4, 8 or 16"):
        TemporalConsistency(cell)  # type: ignore[arg-type]


def test_two_frames_have_no_flicker_to_score() -> None:
    with pytest.raises(ValueError, match="2 frames: temporal consistency needs at least 3"):
        REWARD.reference(REAL[:, :, :2])
