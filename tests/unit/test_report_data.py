"""The report reads what a run has stored, whole, still going on, interrupted or damaged; and adds up where its time went."""

import html
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from rewardfl_api.errors import RewardFLError
from rewardfl_api.spec import Storage as StorageSpec
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.process_age import leave_staging_time, process_seconds, take_staging_time
from rewardfl_trainer.report import command, curves
from rewardfl_trainer.report.clips import COMPARED_LADDER, LADDER, clip_of, fitted
from rewardfl_trainer.report.data import RunData, load
from rewardfl_trainer.report.make import interesting, page_of_run
from rewardfl_trainer.report.stored import Fetched, Folder
from rewardfl_trainer.report.times import times_of
from rewardfl_trainer.storage import Storage
from rewardfl_trainer.timeline import Session, Timeline, earlier_sessions
from rewardfl_trainer.video import write_video
from tests.unit.report_runs import START, evaluated, moving_face, run_with, write_run


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "output")


@pytest.fixture
def copy(output: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(output, tmp_path / "copy"))


def test_a_finished_run_is_read_whole(output: Path) -> None:
    run = load(Folder(output))
    assert (run.name, run.step, run.total_steps, run.finished, run.unreadable) == ("face-identity", 40, 40, True, [])
    assert run.training["learning_rate"] == 1e-4
    assert [(pair.group, pair.row, len(pair.before)) for pair in run.pairs()] == [
        ("held out", 2, 3),
        ("held out", 3, 3),
        ("trained", 0, 1),
        ("trained", 1, 1),
    ]
    assert run.pairs()[0].change == pytest.approx(0.1)
    assert run.pairs()[0].before[0].boxes is not None


def test_a_run_that_its_guard_has_ended_is_finished_where_it_stopped_and_the_page_says_why(copy: Path) -> None:
    history = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    message = "The KL was 0.8, above guard.kl.max=0.5."
    trip = {"reason": "KlTooHigh", "action": "Stop", "step": 40, "time": "2026-01-01T00:00:00Z", "message": message}
    for guard, finished in ((trip, True), (None, False), (trip | {"step": 30}, False)):
        (copy / "run.json").write_text(json.dumps(history | {"total_steps": 400, "guard": guard}), encoding="utf-8")
        run = load(Folder(copy))
        assert (run.finished, bool(run.after)) == (finished, finished)
        page = page_of(copy)
        assert ("stopped by its guard" in page) is finished
        assert (message in page) is (guard is not None)


def test_a_run_that_was_cut_off_anywhere_is_read_as_far_as_it_goes(copy: Path) -> None:
    metrics = copy / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    (copy / "samples" / "step-40.json").write_text('[{"row": 1', encoding="utf-8")
    (copy / "run.json").write_text("", encoding="utf-8")
    (copy / "results.json").unlink()
    run = load(Folder(copy))
    assert run.step == 39
    assert not run.finished
    assert [evaluation.step for evaluation in run.evaluations] == [0, 10, 20, 30]
    assert [line.split(" ")[0] for line in run.unreadable] == ["samples/step-40.json", "run.json"]


def test_a_run_before_its_first_step_has_videos_of_before_only(copy: Path) -> None:
    for name in ("after.json", *(f"step-{step}.json" for step in (10, 20, 30, 40))):
        (copy / "samples" / name).unlink()
    (copy / "results.json").unlink()
    run = load(Folder(copy))
    assert [pair.change for pair in run.pairs()] == [None] * 4
    assert "not generated yet" in page_of(copy)


def page_of(folder: Path) -> str:
    assert command.run([str(folder)], folder / "report.html") is not None
    return (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_of_a_run_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(RewardFLError, match="neither metrics") as caught:
        command.run([str(tmp_path)], tmp_path / "report.html")
    assert caught.value.exit_code == 66


def test_lines_written_again_after_a_resume_replace_the_older_ones(copy: Path) -> None:
    with (copy / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 39, "reward": 0.9}) + "\n" + json.dumps({"step": 40, "reward": None}) + "\n")
    reward = curves.series(load(Folder(copy)).lines, "reward")
    assert (reward.steps[-1], reward.values[-1]) == (39, 0.9), "what was not finite is left out"


@pytest.mark.parametrize(
    "name", ["../../secret.mp4", "/etc/passwd", "before/../../x.mp4", "before/row-0.mp4/../x", "before/row-1.svg"]
)
def test_a_sample_list_cannot_name_files_outside_of_the_samples(copy: Path, name: str) -> None:
    content = json.loads((copy / "samples" / "before.json").read_text(encoding="utf-8"))
    content[0]["video"] = name
    (copy / "samples" / "before.json").write_text(json.dumps(content), encoding="utf-8")
    assert load(Folder(copy)).before[0].file is None


def test_a_link_out_of_the_folder_is_not_followed(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("step: 1", encoding="utf-8")
    (copy / "results.json").unlink()
    (copy / "results.json").symlink_to(tmp_path / "elsewhere")
    assert Folder(copy).path("results.json") is None


def test_what_earlier_starts_and_other_pods_have_made_is_fetched_from_the_output(output: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(output / "samples" / "step-40", here / "samples" / "step-40")
    shutil.copy(output / "metrics.jsonl", here)
    stored = Fetched(Storage(StorageSpec()), str(output), here)
    run = load(stored)
    assert len(run.evaluations) == 5
    assert stored.path("samples/before/row-0.mp4") == here / "samples/before/row-0.mp4"
    assert not (here / "samples" / "step-10").exists(), "nothing is fetched that the page does not need"


def test_the_spread_is_that_of_the_noises_means_over_the_rows() -> None:
    held_out = curves.held_out(run_with([], [(0.1, 0.3), (0.5, 0.5)]))
    assert (held_out.steps, held_out.noises) == ([0, 10], 2)
    assert held_out.means == pytest.approx([0.2, 0.5])
    assert (held_out.lowest, held_out.highest) == ([0.1, 0.5], [0.3, 0.5])


def test_the_time_of_two_starts_is_added_up_and_what_lies_between_is_lost(output: Path) -> None:
    times = times_of(load(Folder(output)))
    assert times.seconds == {"staging": 330, "preparing": 300, "training": 2400, "evaluating": 200, "saving": 50}
    assert (times.lost, times.restarts) == (380, 1)
    assert times.gpu_hours == pytest.approx(8 * 3280 / 3600)
    assert times.goodput == pytest.approx(2400 / 3660)


def test_the_timeline_counts_every_second_once_and_goes_on_after_a_restart() -> None:
    timeline = Timeline(2, "cpu", seconds_ago=100.0)
    earlier = [Session(started=START, written=START + timedelta(seconds=5), step=3)]
    timeline.go_on(earlier, first_step=3, total_steps=9)
    timeline.switch("training")
    with timeline.part("saving"):
        pass
    history = timeline.history(5)
    session = history.sessions[1]
    assert history.sessions[0] == earlier[0]
    assert (session.first_step, session.step, session.processes, history.total_steps) == (3, 5, 2, 9)
    assert session.seconds["preparing"] == pytest.approx(100.0, abs=5)
    assert set(session.seconds) == {"preparing", "training", "saving"}
    assert sum(session.seconds.values()) == pytest.approx((session.written - session.started).total_seconds(), abs=0.1)


def test_a_run_from_the_beginning_is_not_charged_for_another_one_that_had_ended() -> None:
    timeline = Timeline()
    timeline.go_on([Session(started=START, written=START, step=3, ended=True)], first_step=0, total_steps=9)
    assert timeline.earlier == []
    killed = [Session(started=START, written=START, step=3)]
    timeline.go_on(killed, first_step=0, total_steps=9)
    assert timeline.earlier == killed, "its first checkpoint did not arrive"


def test_the_time_of_earlier_starts_is_read_from_the_output_and_never_required(output: Path, tmp_path: Path) -> None:
    storage = Storage(StorageSpec())
    assert [session.step for session in earlier_sessions(storage, str(output))] == [20, 40]
    assert earlier_sessions(storage, str(tmp_path)) == []
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")
    assert earlier_sessions(storage, str(tmp_path)) == []


def test_the_staging_of_a_start_is_its_beginning_and_is_counted_once(tmp_path: Path) -> None:
    leave_staging_time(tmp_path)
    staging = take_staging_time(tmp_path)
    assert staging is not None
    assert staging.seconds == pytest.approx(process_seconds(), abs=2)
    assert take_staging_time(tmp_path) is None, "a trainer that starts again in the same pod has not staged again"
    timeline = Timeline(seconds_ago=1.0)
    timeline.staged(staging)
    session = timeline.history(0).sessions[0]
    assert session.started.timestamp() == pytest.approx(staging.began, abs=0.1)
    assert session.seconds["staging"] == pytest.approx(staging.seconds, abs=0.01)
    assert sum(session.seconds.values()) == pytest.approx((session.written - session.started).total_seconds(), abs=0.1)


@pytest.mark.parametrize("text", ["", "[]", '{"began": 0}', '{"began": 9e99, "seconds": 1}', '{"began": "x", "seconds": 1}'])
def test_a_staging_time_that_cannot_be_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "staging-time.json").write_text(text, encoding="utf-8")
    assert take_staging_time(tmp_path) is None


def test_a_process_knows_how_long_it_has_been_running() -> None:
    assert 0 < process_seconds() < 24 * 3600


def test_rows_are_shown_in_the_order_best_worst_second_best() -> None:
    before, after = evaluated([(0.0,)])["evaluations"][0].samples, []
    run = RunData("run", before=[], after=[])
    assert interesting(run.pairs()) == []
    changes = [0.1, 0.5, -0.2, 0.3]
    before = [
        evaluated([(0.0,)])["evaluations"][0].samples[0].model_copy(update={"row": row, "video": f"before/row-{row}.mp4"})
        for row in range(4)
    ]
    after = [
        one.model_copy(update={"score": change, "video": one.video and one.video.replace("before", "after")})
        for one, change in zip(before, changes, strict=True)
    ]
    pairs = RunData("run", before=before, after=after).pairs()
    assert [pair.row for pair in interesting(pairs)] == [1, 2, 3, 0]


def test_videos_that_do_not_fit_are_sampled_first_and_then_made_smaller(tmp_path: Path) -> None:
    paths = []
    for number in range(8):
        path = tmp_path / f"row-{number}.mp4"
        write_video(path, torch.randn(3, 5, 256, 512, generator=torch.Generator().manual_seed(number)))
        paths.append(path)
    rows = [[path, None] for path in paths]
    size = paths[0].stat().st_size
    everything = fitted(rows, 9 * size)
    assert (len(everything.rows), everything.note) == (8, "")
    assert everything.rows[0][0] is not None
    assert everything.rows[0][0].data == paths[0].read_bytes()
    fewer = fitted(rows, 5 * size)
    assert len(fewer.rows) == 4
    assert fewer.note.startswith("4 of 8 rows are shown")
    small = clip_of(paths[0], LADDER[4])
    assert small is not None
    smaller = fitted(rows, len(small.data) * 5)
    assert sum(len(clip.data) for row in smaller.rows for clip in row if clip) <= len(small.data) * 5
    assert "scaled down" in smaller.note
    assert (small.width, small.height, small.frames, small.frames_per_second) == (512, 256, 5, 16.0), "the original's"
    nothing = fitted(rows, 10, COMPARED_LADDER)
    assert (nothing.rows, "left out" in nothing.note) == ([], True)


def test_of_many_rows_only_the_videos_that_can_be_shown_are_fetched(tmp_path: Path) -> None:
    output = write_run(tmp_path / "output", rows=14)
    page = tmp_path / "page.html"
    config = TrainerConfig.load(output / "config.yaml")
    page.write_text(page_of_run(Storage(StorageSpec()), config, tmp_path / "here"), encoding="utf-8")
    assert "8 of 14 rows are shown" in page.read_text(encoding="utf-8")
    assert len(list((tmp_path / "here").rglob("*.mp4"))) == 16


def test_a_video_that_is_none_is_a_gap_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "row-0.mp4"
    path.write_bytes(b"no video")
    write_video(tmp_path / "row-1.mp4", moving_face(1))
    wall = fitted([[path, tmp_path / "row-1.mp4"]], 10**7)
    assert wall.rows[0][0] is None
    assert wall.rows[0][1] is not None


def test_a_page_of_a_run_says_what_it_is_and_asks_no_network(output: Path, tmp_path: Path) -> None:
    config = TrainerConfig.load(output / "config.yaml")
    text = page_of_run(Storage(StorageSpec()), config, tmp_path, finished=True)
    assert "default-src 'none'; script-src 'sha256-" in html.unescape(text)
    assert "face-identity" in text
    assert len(text.encode()) < 20_000_000
    assert not [part for part in ("<link", "<iframe", 'src="http', "@import", "url(http") if part in text.split("<script", 1)[0]]
