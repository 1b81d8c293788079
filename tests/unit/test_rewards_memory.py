"""Decoding and scoring in pieces: the gradient of the whole graph, and memory that hardly grows with the video's length."""

import pytest
import torch
from torch import Tensor

from rewardfl_trainer.estimate.networks import a14b, empty_models
from rewardfl_trainer.estimate.shapes import give_shapes, shapes
from rewardfl_trainer.estimate.step import FollowedOffload
from rewardfl_trainer.estimate.tracker import Tracker
from rewardfl_trainer.memory import Checkpointing
from rewardfl_trainer.rewards import face
from rewardfl_trainer.rewards.alignment import CROP_SIZE, similarity_to_template
from rewardfl_trainer.rewards.face import FaceReward
from rewardfl_trainer.wan_vae import LEAST_SEGMENT, decode, latent_frames, latent_shape, segment_lengths
from tests.unit.datasets import parameters
from tests.unit.face_networks import frame_with_marks, write_detector, write_recogniser
from tests.unit.live_memory import LiveBytes
from tests.unit.small_networks import random, small_vae

SIZE = 32
KEPT = Checkpointing(enabled=False)
RECOMPUTED = Checkpointing(enabled=True)
OFFLOADED = Checkpointing(enabled=True, offload=True)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> FaceReward:
    folder = tmp_path_factory.mktemp("antelopev2")
    write_detector(folder)
    write_recogniser(folder)
    return FaceReward.load(folder, missing_face_penalty=-0.25)


def latents(num_frames: int) -> Tensor:
    return 0.1 * random(*latent_shape(num_frames, SIZE, SIZE))


def faces(num_frames: int, seed: int = 0) -> Tensor:
    """A video with a face in every frame but each fourth."""
    frames = [
        frame_with_marks(SIZE, SIZE, red=None if t % 4 == 3 else (16, 14 + t % 5), seed=100 * seed + t) for t in range(num_frames)
    ]
    return torch.stack(frames, dim=1)[None]


def scored_gradient(reward: FaceReward, num_frames: int, how: Checkpointing) -> tuple[Tensor, Tensor]:
    """The score of a decoded video, painted over with faces, and its gradient in the latents."""
    leaf = latents(num_frames).requires_grad_()
    video = (faces(num_frames) + 0.2 * decode(small_vae(), leaf, how)).clamp(-1, 1)
    score = reward(video, reward.reference(faces(5, seed=1))).score_B.sum()
    (gradient,) = torch.autograd.grad(score, leaf)
    return score.detach(), gradient


@pytest.mark.parametrize("num_frames", [1, 5, 9, 17, 25])
def test_score_and_gradient_in_pieces_are_those_of_the_whole_graph(
    reward: FaceReward, monkeypatch: pytest.MonkeyPatch, num_frames: int
) -> None:
    found = [scored_gradient(reward, num_frames, how) for how in (RECOMPUTED, OFFLOADED)]
    monkeypatch.setattr(face, "CHECKPOINTED", KEPT)
    monkeypatch.setattr(face, "FACES_PER_CALL", 1000)
    score, gradient = scored_gradient(reward, num_frames, KEPT)
    assert float(gradient.abs().max()) > 0
    for other_score, other_gradient in found:
        torch.testing.assert_close(other_score, score, rtol=1e-5, atol=0)
        error = float((other_gradient - gradient).norm() / gradient.norm())
        assert error < 1e-5


@pytest.mark.parametrize("num_frames", [5, 17])
def test_a_trained_decoders_gradient_in_pieces_is_that_of_the_whole_graph(num_frames: int) -> None:
    gradients = []
    for how in (KEPT, RECOMPUTED, OFFLOADED):
        vae = small_vae().requires_grad_(True)
        decode(vae, latents(num_frames), how).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.model.decoder.parameters() if p.grad is not None]))
    assert len(gradients[0]) > 10_000
    for gradient in gradients[1:]:
        assert float((gradient - gradients[0]).norm() / gradients[0].norm()) < 1e-5


def decode_bytes(num_frames: int, how: Checkpointing) -> int:
    """The most bytes that decoding and its backward pass hold, beyond some copies of the video itself."""
    leaf, vae = latents(num_frames).requires_grad_(), small_vae()
    with LiveBytes() as live:
        video = decode(vae, leaf, how)
        video.mean().backward()
    return live.peak - 3 * video.nbytes


def test_the_decoders_memory_grows_with_the_root_of_the_length_at_most() -> None:
    short, long = (decode_bytes(num_frames, RECOMPUTED) for num_frames in (17, 81))
    whole_short, whole_long = (decode_bytes(num_frames, KEPT) for num_frames in (17, 81))
    frame = (whole_long - whole_short) / (latent_frames(81) - latent_frames(17))
    assert (long - short) / (latent_frames(81) - latent_frames(17)) < 0.03 * frame
    assert long < 1.5 * short
    assert long < whole_long / 7


def true_decode(num_frames: int, *, offload: bool) -> tuple[float, float]:
    """Gigabytes that Wan's own decoder at 480x480 in bf16 needs with its backward pass beside two videos; and in CPU memory."""
    vae = empty_models(a14b(), parameters(), {"vae"}).vae
    give_shapes(vae)
    tracker = Tracker("decode")
    how = Checkpointing(offload=offload, mover=FollowedOffload(tracker))
    with shapes(), tracker:
        leaf = torch.zeros(latent_shape(num_frames, 480, 480), dtype=torch.bfloat16, requires_grad=True)
        video = decode(vae, leaf, how)
        video.mean().backward()
    return (tracker.peak.total - 2 * video.nbytes) / 1e9, tracker.host_peak / 1e9


@pytest.mark.slow
def test_the_true_decoder_with_offload_needs_the_same_memory_for_any_length() -> None:
    found = {num_frames: true_decode(num_frames, offload=True) for num_frames in (41, 81, 161)}
    device, host = ({num_frames: pair[place] for num_frames, pair in found.items()} for place in (0, 1))
    assert device[81] == pytest.approx(13.45, rel=0.02)
    assert device[41] == pytest.approx(device[81], rel=0.002)
    assert device[161] == pytest.approx(device[81], rel=0.002)
    a_latent_frame = (host[161] - host[81]) / (latent_frames(161) - latent_frames(81))
    assert a_latent_frame == pytest.approx(1.09, rel=0.02)
    assert host[81] - host[41] == pytest.approx(a_latent_frame * (latent_frames(81) - latent_frames(41)), rel=0.002)


@pytest.mark.slow
def test_the_true_decoder_without_offload_keeps_as_many_frames_as_its_longest_segment() -> None:
    found = {num_frames: true_decode(num_frames, offload=False) for num_frames in (41, 81, 161)}
    assert {host for _, host in found.values()} == {0}
    assert found[41][0] < found[81][0] < found[161][0] < 1.3 * found[41][0]


@pytest.mark.parametrize("num_latent_frames", [1, 2, 3, 4, 5, 9, 21, 41, 257])
def test_segments_cover_the_video_and_keep_few_caches(num_latent_frames: int) -> None:
    lengths = segment_lengths(num_latent_frames)
    assert sum(lengths) == num_latent_frames
    assert min(lengths) >= 1
    kept = [before + length - 1 for before, length in enumerate(lengths)]
    assert max(kept) <= max(LEAST_SEGMENT - 1, (2 * num_latent_frames) ** 0.5)
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("num_frames", "how", "runs"), [(81, RECOMPUTED, 2.7), (17, RECOMPUTED, 2), (81, OFFLOADED, 2)])
def test_the_decoder_runs_forward_at_most_so_often_a_frame(num_frames: int, how: Checkpointing, runs: float) -> None:
    calls = 0
    vae, leaf = small_vae(), latents(num_frames).requires_grad_()

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    vae.model.decoder.conv1.register_forward_hook(count)
    decode(vae, leaf, how).mean().backward()
    frames = latent_frames(num_frames)
    assert (runs - 0.3) * frames < calls < runs * frames


def reward_bytes(reward: FaceReward, num_frames: int) -> Tensor:
    """The bytes that scoring keeps for its backward pass, and the most that both hold."""
    reference, video = reward.reference(faces(5, seed=1)), faces(num_frames).requires_grad_()
    with LiveBytes() as live:
        score = reward(video, reference).score_B.sum()
        kept = live.now
        score.backward()
    return torch.tensor([kept, live.peak])


def test_the_rewards_memory_does_not_grow_with_the_length(reward: FaceReward, monkeypatch: pytest.MonkeyPatch) -> None:
    growth, peak = reward_bytes(reward, 41) - reward_bytes(reward, 17)
    monkeypatch.setattr(face, "CHECKPOINTED", KEPT)
    whole_growth, _ = reward_bytes(reward, 41) - reward_bytes(reward, 17)
    assert growth < 0.05 * whole_growth
    assert peak < 0.05 * whole_growth


def test_batched_detection_and_region_warp_equal_frame_by_frame_and_whole_frame(reward: FaceReward) -> None:
    video = faces(9)
    together = reward(video, reward.reference(faces(5, seed=1)))
    reference = reward.reference(faces(5, seed=1))
    for frame in range(9):
        alone = reward(video[:, :, frame : frame + 1], reference)
        torch.testing.assert_close(alone.frame_scores_BT[0, 0], together.frame_scores_BT[0, frame], equal_nan=True)
        torch.testing.assert_close(alone.keypoints_BT52[0, 0], together.keypoints_BT52[0, frame], equal_nan=True)
        if frame % 4 != 3:
            crop = whole_frame_warp(video[0, :, frame], together.keypoints_BT52[0, frame])
            embedding = reward.recogniser(crop[None])[0]
            score = embedding @ reference.mean_BE()[0]
            torch.testing.assert_close(score, together.frame_scores_BT[0, frame], rtol=1e-4, atol=1e-5)


def whole_frame_warp(frame_3HW: Tensor, keypoints_52: Tensor) -> Tensor:
    """Warp the whole frame onto a canvas that holds frame and crop, pixel by pixel, and cut the crop's region out of it."""
    matrix_23 = similarity_to_template(keypoints_52[None])[0][0].double()
    canvas = max(CROP_SIZE, *frame_3HW.shape[1:])
    y, x = torch.meshgrid(*(torch.arange(canvas, dtype=torch.float64),) * 2, indexing="ij")
    targets_P2 = torch.stack((x, y), dim=-1).reshape(-1, 2)
    sources_P2 = torch.linalg.solve(matrix_23[:, :2], (targets_P2 - matrix_23[:, 2]).T).T
    low_P2 = sources_P2.floor()
    warped = torch.zeros(3, canvas * canvas, dtype=torch.float64)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        corner_P2 = low_P2 + torch.tensor([dx, dy])
        weight_P = (1 - (sources_P2 - corner_P2).abs()).prod(dim=1)
        columns, rows = corner_P2.long().unbind(dim=1)
        inside = (columns >= 0) & (rows >= 0) & (columns < frame_3HW.shape[2]) & (rows < frame_3HW.shape[1])
        values = torch.full((3, len(columns)), -1.0, dtype=torch.float64)
        values[:, inside] = frame_3HW[:, rows[inside], columns[inside]].double()
        warped += weight_P * values
    return warped.view(3, canvas, canvas)[:, :CROP_SIZE, :CROP_SIZE].float()
