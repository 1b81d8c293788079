"""The tiny family: it loads as the real one does, and its networks do what they were trained for."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnx2torch
import onnxruntime
import pytest
import torch
from torch import Tensor

from rewardfl_trainer.rewards.alignment import crop_faces, similarity_to_template
from rewardfl_trainer.rewards.face import FaceReference, FaceReward
from rewardfl_trainer.tiny import degrade, faces, layout, store, write
from rewardfl_trainer.tiny.check import Example, Family
from rewardfl_trainer.tiny.spec import NUM_FRAMES
from rewardfl_trainer.tiny.train import detector, dit, recogniser, text, vae
from rewardfl_trainer.tiny.train.loop import Budget

COMMITTED_BYTES_AT_MOST = 8_000_000
SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
FEW_STEPS = Budget(steps=12, learning_rate=2e-3, warmup_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write(path)
    return path


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return Family(folder)


@pytest.fixture(scope="module")
def examples(family: Family) -> list[Example]:
    return family.examples("dataset-eval")


@pytest.fixture(scope="module")
def reward(folder: Path) -> FaceReward:
    return FaceReward.load(folder / "antelopev2")


def clips() -> faces.Clips:
    """Six people that nobody was trained on."""
    return layout.dataset_clips(6, seed=77)


def frames_of(video_B3THW: Tensor) -> Tensor:
    return video_B3THW.transpose(1, 2).flatten(0, 1)


def test_the_committed_weights_and_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in store.FOLDER.iterdir()) <= COMMITTED_BYTES_AT_MOST


def test_every_committed_picture_stands_in_the_licence_note() -> None:
    note = (store.FOLDER / "LICENSES.md").read_text(encoding="utf-8")

    assert {path.name for path in store.FOLDER.glob("*.png")} == {name for name in note.split() if name.endswith(".png")}


def test_the_list_of_paths_names_two_sharded_experts_a_text_encoder_and_a_vae(folder: Path) -> None:
    entries = json.loads((folder / "wan22_paths.json").read_text(encoding="utf-8"))

    assert [len(entry) if isinstance(entry, list) else 1 for entry in entries] == [2, 2, 1, 1]
    flat = [path for entry in entries for path in (entry if isinstance(entry, list) else [entry])]
    assert all((folder / path).is_file() for path in flat)


def test_written_files_can_be_read_by_other_users(folder: Path) -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*") if path.is_file())


def test_the_datasets_list_every_clip_with_its_prompt(folder: Path) -> None:
    for name, (rows, _) in layout.DATASETS.items():
        with (folder / name / "metadata.csv").open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == rows
        assert all((folder / name / row["video"]).is_file() and row["prompt"].startswith("a person") for row in table)


@pytest.mark.parametrize(
    ("name", "size", "outputs"),
    [
        (
            "scrfd_10g_bnkps",
            640,
            [(12800, 1), (3200, 1), (800, 1), (12800, 4), (3200, 4), (800, 4), (12800, 10), (3200, 10), (800, 10)],
        ),
        ("glintr100", 112, [(1, 512)]),
        ("2d106det", 192, [(1, 212)]),
    ],
)
def test_onnx_files_have_the_real_shapes_and_convert_to_equal_torch_modules(
    folder: Path, name: str, size: int, outputs: list[tuple[int, int]]
) -> None:
    path = folder / "antelopev2" / f"{name}.onnx"
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    expected = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input.1": images.numpy()})
    converted = onnx2torch.convert(onnx.load(str(path)))(images)

    assert [values.shape for values in expected] == outputs
    for values, tensor in zip(expected, converted if isinstance(converted, list | tuple) else [converted], strict=True):
        np.testing.assert_allclose(tensor.detach().numpy(), values, rtol=1e-3, atol=1e-4)


def test_the_recogniser_has_a_gradient_with_respect_to_the_pixels(reward: FaceReward) -> None:
    crops = torch.zeros(1, 3, 112, 112, requires_grad=True)

    reward.recogniser(crops)[0, 0].backward()

    assert crops.grad is not None
    assert float(crops.grad.abs().max()) > 0


def test_the_detector_finds_the_face_and_its_points_in_every_clip(reward: FaceReward) -> None:
    shown = [layout.dataset_clips(rows, seed) for rows, seed in layout.DATASETS.values()]

    for one in shown:
        found = reward.find_faces(frames_of(one.video_B3THW))
        distance = (found.keypoints_F52 - one.points_BT5xy.flatten(0, 1)).norm(dim=-1)
        assert bool(found.found_F.all())
        assert float(distance.mean()) < 1.5


def test_the_detector_finds_nobody_in_scenery(reward: FaceReward) -> None:
    scenery = faces.scenery(8, torch.Generator().manual_seed(5)) * 2 - 1

    assert not bool(reward.find_faces(scenery).found_F.any())


def test_the_recogniser_tells_people_apart(reward: FaceReward) -> None:
    shown = clips()
    embeddings = reward.reference(shown.video_B3THW).embeddings_BSE[:, 1:]

    similarity = torch.einsum("aie,bje->abij", embeddings, embeddings).mean((2, 3))

    same = similarity.diagonal()
    different = similarity[~torch.eye(len(similarity), dtype=torch.bool)]
    assert float(same.min()) > 0.75
    assert float(different.max()) < 0.5


@pytest.mark.parametrize("spoil", [degrade.blur, degrade.warp, degrade.noise, degrade.tint])
def test_a_face_is_the_less_similar_the_more_it_is_spoilt(reward: FaceReward, spoil: recogniser.Spoil) -> None:
    shown = clips()
    frames, points = frames_of(shown.video_B3THW), shown.points_BT5xy.flatten(0, 1)
    matrices = similarity_to_template(points)[0]
    clean = reward.recogniser(crop_faces(frames, matrices))

    similarities = []
    for severity in SEVERITIES:
        spoilt = spoil(frames, torch.full((len(frames),), severity), torch.Generator().manual_seed(3))
        similarities.append(float((reward.recogniser(crop_faces(spoilt, matrices)) * clean).sum(-1).mean()))

    assert all(after < before for before, after in itertools.pairwise(similarities))
    assert similarities[-1] < 0.4


def test_vae_latents_have_the_statistics_of_the_real_ones(family: Family) -> None:
    vae_model = family.models.vae

    latents = vae_model.model.encode(clips().video_B3THW, vae_model.scale)

    assert abs(float(latents.mean())) < 0.2
    assert 0.8 < float(latents.std()) < 1.2


def test_the_vae_reconstructs_recognisable_faces(family: Family, reward: FaceReward) -> None:
    video, model = clips().video_B3THW, family.models.vae

    decoded = model.model.decode(model.model.encode(video, model.scale), model.scale).clamp(-1, 1)

    assert vae.psnr(decoded, video) > 20
    assert float(reward(decoded, reward.reference(video)).score_B.mean()) > 0.6


def test_sampled_videos_show_the_person_but_not_perfectly(family: Family, examples: list[Example]) -> None:
    scores = family.scores(examples, [0, 1])

    assert 0.35 < sum(scores) / len(scores) < 0.75


def test_another_person_scores_lower_than_the_right_one(family: Family, examples: list[Example], reward: FaceReward) -> None:
    embeddings = torch.cat([example.reference.mean_BE() for example in examples])
    others = FaceReference(
        embeddings.roll(1, 0)[:, None].expand(-1, NUM_FRAMES, -1), torch.ones(len(examples), NUM_FRAMES).bool()
    )

    video = torch.cat([example.video_13THW for example in examples])

    right = torch.cat([reward(example.video_13THW, example.reference).score_B for example in examples])
    assert bool((reward(video, others).score_B < right - 0.3).all())


@pytest.mark.slow
def test_a_few_steps_of_every_part_lower_its_loss(tmp_path: Path) -> None:
    text.write_tokenizer(tmp_path)

    losses = {
        "text": text.train(FEW_STEPS, 0, tmp_path)[1],
        "pictures": vae.train_pictures(FEW_STEPS, 0)[1],
        "detector": detector.train(FEW_STEPS, 0)[1],
        "recogniser": recogniser.train(FEW_STEPS, 0)[1],
        "dit": dit.train("low", FEW_STEPS, 0, clips=16)[1],
    }

    assert {part: sum(values[-3:]) < sum(values[:3]) for part, values in losses.items()} == dict.fromkeys(losses, True)
