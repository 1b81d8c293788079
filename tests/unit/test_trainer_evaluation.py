"""Which rows are held out, when their reward is measured, and what is said of it."""

import logging
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.evaluation import Evaluation, Split, held_out_values, split_rows
from rewardfl_trainer.samples import SampleScore
from tests.unit.datasets import make_video, parameters, write_csv


def dataset(folder: Path, rows: int, prefix: str = "video") -> Path:
    folder.mkdir()
    for number in range(rows):
        make_video(folder / f"{prefix}{number}.mp4")
    write_csv(folder, "video,prompt\n" + "".join(f"{prefix}{number}.mp4,prompt {number}\n" for number in range(rows)))
    return folder


def config(folder: Path, **training: Any) -> TrainerConfig:
    return TrainerConfig(dataset=str(folder), output=str(folder.parent / "output"), device="cpu", training=parameters(**training))


def names(split: Split) -> tuple[list[str], list[str]]:
    return [row.video.name for row in split.trained_rows], [split.rows[p].video.name for p in split.evaluation_positions]


def test_the_last_rows_are_held_out(tmp_path: Path) -> None:
    split = split_rows(config(dataset(tmp_path / "data", 4), eval_rows=2), None)
    assert names(split) == (["video0.mp4", "video1.mp4"], ["video2.mp4", "video3.mp4"])
    assert len(split.trained_sizes) == 2
    assert len(split.sizes) == 4


def test_without_a_wish_every_row_is_trained_on(tmp_path: Path) -> None:
    split = split_rows(config(dataset(tmp_path / "data", 2)), None)
    assert names(split) == (["video0.mp4", "video1.mp4"], [])


def test_a_dataset_of_its_own_is_held_out_as_a_whole(tmp_path: Path) -> None:
    other = dataset(tmp_path / "other", 3, "unseen")
    split = split_rows(config(dataset(tmp_path / "data", 2), eval_dataset=str(other)), None)
    assert names(split) == (["video0.mp4", "video1.mp4"], ["unseen0.mp4", "unseen1.mp4", "unseen2.mp4"])


def test_holding_out_every_row_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(RewardFLError, match=r"training\.eval_rows=2: the dataset has 2 usable rows") as caught:
        split_rows(config(dataset(tmp_path / "data", 2), eval_rows=2), None)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_CONFIGURATION, ExitCode.BAD_CONFIGURATION)


def test_a_bad_evaluation_dataset_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardFLError, match=r"training\.eval_dataset: .*metadata\.csv: no such file") as caught:
        split_rows(config(dataset(tmp_path / "data", 1), eval_dataset=str(tmp_path / "empty")), None)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_evaluating_what_is_trained_on_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = dataset(tmp_path / "data", 2)
    with caplog.at_level(logging.WARNING, logger="rewardfl_trainer"):
        logging.getLogger("rewardfl_trainer").propagate = True
        split_rows(config(folder, eval_dataset=str(folder)), None)
    assert "evaluation row 1 (video0.mp4) shows a video that is trained on as well" in caplog.text


@pytest.mark.parametrize(
    ("rows", "every", "expected"), [(1, None, [0, 7]), (1, 3, [0, 3, 6, 7]), (1, 100, [0, 7]), (0, None, [])]
)
def test_it_is_measured_before_and_after_training_and_every_so_many_steps(
    rows: int, every: int | None, expected: list[int]
) -> None:
    evaluation = Evaluation(None, list(range(rows)), [0], every, 7, 1)  # type: ignore[arg-type]
    assert [step for step in range(8) if evaluation.is_due(step)] == expected


def score(row: int, value: float, no_face: float | None = 0.0, **rewards: float) -> SampleScore:
    return SampleScore(row, 0, "", None, value, rewards or {"face_identity": value}, [], no_face)


def test_the_numbers_are_means_over_rows_and_noises() -> None:
    assert held_out_values([score(0, 0.2), score(1, 0.6, 0.5)]) == pytest.approx(
        {"held_out_reward": 0.4, "held_out_no_face_fraction": 0.25}
    )


def test_several_rewards_are_named_one_by_one() -> None:
    values = held_out_values([score(0, 0.5, face_identity=0.4, temporal_consistency=0.9)])
    assert values["held_out_reward"] == 0.5
    assert values["held_out_reward_face_identity"] == 0.4
    assert values["held_out_reward_temporal_consistency"] == 0.9


def test_without_a_face_reward_nothing_is_said_about_faces() -> None:
    assert held_out_values([score(0, 0.5, None)]) == {"held_out_reward": 0.5}
