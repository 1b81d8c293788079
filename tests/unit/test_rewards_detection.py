"""The face detector against insightface's recipe run frame by frame in onnxruntime."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rewardfl_trainer.rewards.detection import FaceDetector, largest_faces, letterbox
from tests.unit import insightface_recipe
from tests.unit.face_networks import FORMS, Form, frame_with_marks, write_detector

SIZES = [(64, 80), (96, 48), (64, 64), (720, 480)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Path]:
    """A detector of every form that exporters write."""
    made: dict[Form, Path] = {}
    for form in FORMS:
        made[form] = tmp_path_factory.mktemp(form)
        write_detector(made[form], form)
    return made


def frames(height: int, width: int) -> Tensor:
    """A small face, a big and a small one, none, a face half outside."""
    return torch.stack(
        [
            frame_with_marks(height, width, red=(height // 2 - 3, width // 2 + 5), seed=1),
            frame_with_marks(height, width, red=(height // 3, width // 3), green=(2 * height // 3, width // 2), seed=2),
            frame_with_marks(height, width, seed=3),
            frame_with_marks(height, width, green=(height // 6, width - width // 6), seed=4),
        ]
    )


def picture(frame: Tensor) -> insightface_recipe.Array:
    return (frame.permute(1, 2, 0).double().numpy() + 1) * 127.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_detector_finds_the_face_that_insightface_finds(folders: dict[Form, Path], form: Form, size: tuple[int, int]) -> None:
    pictures = frames(*size)
    network = insightface_recipe.session(folders[form] / "scrfd_10g_bnkps.onnx")

    found = FaceDetector.load(folders[form])(pictures)

    expected = [insightface_recipe.largest_face(network, picture(frame)) for frame in pictures]
    assert found.found_F.tolist() == [face is not None for face in expected] == [True, True, False, True]
    for index, face in enumerate(expected):
        if face is None:
            assert found.boxes_F4[index].isnan().all()
            assert found.keypoints_F52[index].isnan().all()
            assert found.scores_F[index].isnan()
        else:
            np.testing.assert_allclose(found.boxes_F4[index].numpy(), face[0][:4], atol=1e-3)
            np.testing.assert_allclose(found.keypoints_F52[index].numpy(), face[1], atol=1e-3)
            np.testing.assert_allclose(found.scores_F[index].item(), face[0][4], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_batched_detection_equals_frame_by_frame(folders: dict[Form, Path], form: Form) -> None:
    detector = FaceDetector.load(folders[form])
    inputs = torch.rand(3, 3, 640, 640, generator=torch.Generator().manual_seed(0)) * 2 - 1

    together = detector.decode(inputs)
    single = [detector.decode(frame[None]) for frame in inputs]

    for whole, parts in zip(together, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-5, atol=1e-4)


def test_more_frames_than_fit_one_call_are_found_in_order(folders: dict[Form, Path]) -> None:
    detector = FaceDetector.load(folders["position_major"])
    marked = [frame_with_marks(64, 64, red=(32, 20 + index), seed=index) for index in range(18)]

    found = detector(torch.stack(marked))

    alone = [detector(frame[None]) for frame in marked]
    torch.testing.assert_close(found.boxes_F4, torch.cat([face.boxes_F4 for face in alone]))
    assert found.boxes_F4[-1, 0] > found.boxes_F4[0, 0]


def test_the_largest_of_several_faces_is_chosen(folders: dict[Form, Path]) -> None:
    found = FaceDetector.load(folders["batch_axis"])(frames(64, 80)[1:2])

    width, height = (found.boxes_F4[0, 2:] - found.boxes_F4[0, :2]).tolist()

    assert (width, height) == (50, 50)  # stride 16: 400 of the 640 pixels, here 80


def test_suppression_agrees_with_the_greedy_recipe() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(4, 60, 2, generator=generator, dtype=torch.float64) * 30
    boxes = torch.cat((corners, corners + 5 + 12 * torch.rand(4, 60, 2, generator=generator, dtype=torch.float64)), dim=-1)
    scores = torch.rand(4, 60, generator=generator, dtype=torch.float64)
    points = corners.unsqueeze(2).expand(4, 60, 5, 2)

    found_boxes, _, found_scores, _ = largest_faces(scores, boxes, points)

    for index in range(4):
        above = scores[index] >= 0.5
        order = scores[index][above].argsort(descending=True)
        candidates = torch.cat((boxes[index][above], scores[index][above][:, None]), dim=1)[order].numpy()
        kept = candidates[insightface_recipe.suppress(candidates)]
        assert len(kept) < len(candidates)
        best = kept[np.argmax((kept[:, 2] - kept[:, 0]) * (kept[:, 3] - kept[:, 1]))]
        np.testing.assert_allclose(found_boxes[index].numpy(), best[:4])
        np.testing.assert_allclose(found_scores[index].item(), best[4])


@pytest.mark.parametrize(("height", "chosen"), [(26.0, 10.0), (27.0, 27.0)])
def test_suppression_counts_the_last_pixel_of_a_box(height: float, chosen: float) -> None:
    """11x11 pixels in 11x27 overlap by 0.407, in 11x28 by 0.393; without the last pixel both would be below 0.4."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, height]]])

    found_boxes, *_ = largest_faces(torch.tensor([[0.9, 0.8]]), boxes, torch.zeros(1, 2, 5, 2))

    assert found_boxes[0, 3].item() == chosen


def test_letterbox_pads_with_black_to_the_right_and_below() -> None:
    white = torch.ones(1, 3, 48, 96)

    inputs, scale = letterbox(white)

    assert inputs.shape == (1, 3, 640, 640)
    assert scale == 640 / 96
    torch.testing.assert_close(inputs[:, :, :320], torch.full((1, 3, 320, 640), (255 - 127.5) / 128))
    torch.testing.assert_close(inputs[:, :, 320:], torch.full((1, 3, 320, 640), (0 - 127.5) / 128))
