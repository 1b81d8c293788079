"""metadata.csv and the preflight over the dataset: every fault is named, all of them in one error."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.data import Row, VideoDataset, load_rows, preflight
from rewardfl_trainer.rewards.face import FaceReward
from rewardfl_trainer.video import write_video
from tests.unit.datasets import NUM_FRAMES, make_video, parameters, write_csv
from tests.unit.face_networks import frame_with_marks, write_detector, write_recogniser
from tests.unit.test_data_videos import write


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> FaceReward:
    folder = tmp_path_factory.mktemp("antelopev2")
    write_detector(folder)
    write_recogniser(folder)
    return FaceReward.load(folder)


def rejection(folder: Path) -> RewardFLError:
    with pytest.raises(RewardFLError) as caught:
        load_rows(folder)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_DATASET, ExitCode.BAD_DATA)
    assert "metadata.csv" in caught.value.hint
    return caught.value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_are_read_with_and_without_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "ein Gesicht é 脸.mp4"):
        (tmp_path / "videos" / name).touch()
    text = 'video,prompt\r\nvideos/a.mp4,"a face, smiling"\r\nvideos/ein Gesicht é 脸.mp4,ein „Gesicht“\r\n'

    rows = load_rows(write_csv(tmp_path, text, encoding))

    assert rows == [
        Row(0, tmp_path / "videos/a.mp4", "a face, smiling"),
        Row(1, tmp_path / "videos/ein Gesicht é 脸.mp4", "ein „Gesicht“"),
    ]


def test_other_columns_and_another_order_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()

    rows = load_rows(write_csv(tmp_path, "id, prompt ,video\n7,a face,a.mp4\n"))

    assert rows == [Row(0, tmp_path / "a.mp4", "a face")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column video and prompt; found an empty file"),
        ("file,prompt\na.mp4,x\n", "no column video; found file, prompt"),
        ("video;prompt\na.mp4;x\n", "no column video and prompt; found video;prompt"),
        ("video,prompt\n", "has no rows"),
        ('video,prompt\na.mp4,"never closed\n', "after line 1: unexpected end of data"),
    ],
)
def test_a_csv_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in rejection(write_csv(tmp_path, text)).message


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'metadata.csv'}: no such file" in rejection(tmp_path).message


def test_a_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    assert "not UTF-8 text (byte 19)" in rejection(write_csv(tmp_path, "video,prompt\na.mp4,é\n", "latin-1")).message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../secret.mp4", "not a path inside the dataset's folder"),
        ("videos/../../secret.mp4", "not a path inside the dataset's folder"),
        ("/etc/passwd", "not a path inside the dataset's folder"),
        ("a\0.mp4", "not a path inside the dataset's folder"),
        ("link.mp4", "a link that leaves the dataset's folder"),
        ("linked/secret.mp4", "a link that leaves the dataset's folder"),
        ("gone.mp4", "no such file"),
        ("folder", "no such file"),
        (" ", "names no video"),
    ],
)
def test_a_path_that_leaves_the_folder_or_names_no_file_is_a_problem(tmp_path: Path, name: str, said: str) -> None:
    outside, dataset = tmp_path / "outside", tmp_path / "dataset"
    outside.mkdir()
    make_video(outside / "secret.mp4")
    (dataset / "videos").mkdir(parents=True)
    (dataset / "folder").mkdir()
    (dataset / "link.mp4").symlink_to(outside / "secret.mp4")
    (dataset / "linked").symlink_to(outside)

    (row,) = load_rows(write_csv(dataset, f"video,prompt\n{name},x\n"))

    assert said in row.problem
    with pytest.raises(RewardFLError, match="row 1"):
        VideoDataset([row], parameters())[0]


def test_a_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    make_video(tmp_path / "real.mp4")
    (tmp_path / "link.mp4").symlink_to("real.mp4")

    (row,) = load_rows(write_csv(tmp_path, "video,prompt\nlink.mp4,x\n"))

    assert row.problem == ""


def bad_dataset(folder: Path) -> Path:
    """A folder with two good videos and one of each fault."""
    make_video(folder / "good.mp4")
    make_video(folder / "wide one.mp4", height=64, width=128)
    make_video(folder / "faceless.mp4", face=False)
    make_video(folder / "one frame.mp4", num_frames=1)
    make_video(folder / "short.mp4", num_frames=4)
    whole = (folder / "good.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    names = ["good", "wide one", "faceless", "one frame", "short", "truncated", "text", "empty", "missing"]
    lines = [f"{name}.mp4,a face" for name in names] + ["good.mp4", "good.mp4,a face, smiling", "../good.mp4,a face"]
    return write_csv(folder, "\n".join(["video,prompt", *lines, ""]))


def test_every_bad_row_is_listed_in_one_error(tmp_path: Path, faces: FaceReward) -> None:
    rows = load_rows(bad_dataset(tmp_path))

    with pytest.raises(RewardFLError) as caught:
        preflight(rows, parameters(), faces)

    error = caught.value
    assert (error.reason, error.exit_code) == (Reason.BAD_DATASET, ExitCode.BAD_DATA)
    for said in (
        "10 of the 12 rows of metadata.csv cannot be used",
        "row 3 (faceless.mp4): no face in its first frame",
        "row 4 (one frame.mp4): has 1 frame, 5 are needed",
        "row 5 (short.mp4): has 4 frames, 5 are needed",
        "row 6 (truncated.mp4): cannot be decoded",
        "row 7 (text.mp4): cannot be decoded",
        "row 8 (empty.mp4): cannot be decoded",
        "row 9 (missing.mp4): 'missing.mp4': no such file",
        "row 10 (good.mp4): has fewer cells than the header",
        "row 11 (good.mp4): has more cells than the header",
        "row 12 (good.mp4): '../good.mp4' is not a path inside the dataset's folder",
    ):
        assert said in error.message
    assert "row 1 (" not in error.message
    assert "row 2 (" not in error.message


def test_sound_sizes_spaces_and_unicode_are_no_fault_and_odd_rotation_is_listed_with_the_rest(tmp_path: Path) -> None:
    picture = np.full((64, 48, 3), 90, np.uint8)
    write(tmp_path / "mit Ton 脸.mp4", [picture] * NUM_FRAMES, audio=True)
    write(tmp_path / "turned.mp4", [picture] * NUM_FRAMES, rotation=90)
    write(tmp_path / "askew.mp4", [picture] * NUM_FRAMES, rotation=30)
    make_video(tmp_path / "one frame.mp4", num_frames=1)
    names = ["mit Ton 脸.mp4", "turned.mp4", "askew.mp4", "one frame.mp4", "weg.mp4"]
    rows = load_rows(write_csv(tmp_path, "video,prompt\n" + "".join(f"{name},ein Gesicht\n" for name in names)))

    assert preflight(rows[:2], parameters()).sizes == [(64, 48), (48, 64)]
    with pytest.raises(RewardFLError, match=r"3 of the 5 rows") as caught:
        preflight(rows, parameters())

    assert [name for name in names if name in caught.value.message] == names[2:]
    assert "only quarter turns are supported" in caught.value.message


def test_a_first_frame_without_a_face_names_row_video_and_remedy(tmp_path: Path, faces: FaceReward) -> None:
    make_video(tmp_path / "good.mp4")
    make_video(tmp_path / "nobody.mp4", face=False)
    rows = load_rows(write_csv(tmp_path, "video,prompt\ngood.mp4,x\nnobody.mp4,x\n"))

    with pytest.raises(RewardFLError) as caught:
        preflight(rows, parameters(), faces)

    assert (caught.value.reason, caught.value.exit_code) == (Reason.NO_FACE_IN_FIRST_FRAME, ExitCode.BAD_DATA)
    assert "row 2 (nobody.mp4): no face in its first frame" in caught.value.message
    assert "training.on_missing_face to skip" in caught.value.hint


def test_only_the_first_frame_needs_a_face(tmp_path: Path, faces: FaceReward) -> None:
    frames = [frame_with_marks(64, 64, red=(32, 32) if index == 0 else None) for index in range(NUM_FRAMES)]
    write_video(tmp_path / "leaves.mp4", torch.stack(frames, dim=1))
    write_video(tmp_path / "enters.mp4", torch.stack(frames[::-1], dim=1))
    rows = load_rows(write_csv(tmp_path, "video,prompt\nleaves.mp4,x\nenters.mp4,x\n"))

    checked = preflight(rows, parameters(on_missing_face="skip"), faces)

    assert (checked.rows, checked.skipped) == (rows[:1], rows[1:])


def test_skip_leaves_rows_without_a_face_out_and_reports_them(tmp_path: Path, faces: FaceReward) -> None:
    make_video(tmp_path / "nobody.mp4", face=False)
    make_video(tmp_path / "good.mp4", height=64, width=128)
    rows = load_rows(write_csv(tmp_path, "video,prompt\nnobody.mp4,x\ngood.mp4,x\n"))

    checked = preflight(rows, parameters(on_missing_face="skip"), faces)

    assert checked.rows == [rows[1]]
    assert checked.sizes == [(32, 80)]  # 64x128 under 4096 pixels, multiples of 16
    assert checked.skipped == [rows[0]]


def test_skip_still_refuses_broken_files(tmp_path: Path, faces: FaceReward) -> None:
    make_video(tmp_path / "good.mp4")
    make_video(tmp_path / "nobody.mp4", face=False)
    rows = load_rows(write_csv(tmp_path, "video,prompt\ngood.mp4,x\nnobody.mp4,x\ngone.mp4,x\n"))

    with pytest.raises(RewardFLError) as caught:
        preflight(rows, parameters(on_missing_face="skip"), faces)

    assert caught.value.reason == Reason.BAD_DATASET
    assert "1 of the 3 rows" in caught.value.message
    assert "nobody" not in caught.value.message


def test_skipping_every_row_is_an_error(tmp_path: Path, faces: FaceReward) -> None:
    make_video(tmp_path / "nobody.mp4", face=False)
    rows = load_rows(write_csv(tmp_path, "video,prompt\nnobody.mp4,x\n"))

    with pytest.raises(RewardFLError) as caught:
        preflight(rows, parameters(on_missing_face="skip"), faces)

    assert (caught.value.reason, caught.value.exit_code) == (Reason.NO_FACE_IN_FIRST_FRAME, ExitCode.BAD_DATA)
    assert "skip" not in caught.value.hint


def test_without_a_face_reward_no_face_is_looked_for(tmp_path: Path) -> None:
    make_video(tmp_path / "nobody.mp4", face=False)
    rows = load_rows(write_csv(tmp_path, "video,prompt\nnobody.mp4,x\n"))

    assert preflight(rows, parameters()).rows == rows


def test_dataset_gives_rows_with_videos_of_the_size_preflight_says(tmp_path: Path) -> None:
    folder = bad_dataset(tmp_path)
    good = load_rows(folder)[:2]

    checked = preflight(good, parameters())
    samples = [VideoDataset(good, parameters())[position] for position in range(2)]

    assert [sample.row for sample in samples] == good
    for sample, size in zip(samples, checked.sizes, strict=True):
        assert sample.video_3THW.shape == (3, NUM_FRAMES, *size)
        assert in_range(sample.video_3THW)


def test_dataset_names_a_row_that_went_bad_after_the_preflight(tmp_path: Path) -> None:
    make_video(tmp_path / "good.mp4")
    (row,) = load_rows(write_csv(tmp_path, "video,prompt\ngood.mp4,x\n"))
    shutil.copyfile(tmp_path / "metadata.csv", tmp_path / "good.mp4")

    with pytest.raises(RewardFLError, match=r"row 1 \(good.mp4\): cannot be decoded"):
        VideoDataset([replace(row)], parameters())[0]


def in_range(video: Tensor) -> bool:
    return bool((video >= -1).all() and (video <= 1).all() and video.std() > 0.05)
