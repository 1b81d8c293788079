"""The held-out reward of a real run on the tiny family, and runs whose videos show no face."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rewardfl_trainer.environment import Process
from rewardfl_trainer.metrics import MetricsLog
from rewardfl_trainer.progress import Reporter
from rewardfl_trainer.report import make
from rewardfl_trainer.reporting import Reporting
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.train import train, train_steps
from tests.distributed.conftest import MakeConfig

pytestmark = pytest.mark.slow

BOTH = [{"name": "face_identity"}, {"name": "temporal_consistency", "weight": 0.2}]


def metrics(run_or_folder: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_or_folder / "metrics.jsonl").read_text().splitlines()]


def lora(run: Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.trainable.parameters()}


def trained(run: Run) -> dict[str, torch.Tensor]:
    with MetricsLog(run.folder, run.process) as log, Reporter(None) as reporter:
        train_steps(run, log, reporter)
    return lora(run)


def test_the_held_out_reward_is_measured_logged_and_shown(make_config: MakeConfig, process: Process) -> None:
    config = make_config(rows=3, eval_rows=1, eval_steps=2, eval_noise_seeds=2, max_steps=3, num_sample_videos=1, rewards=BOTH)
    train(config, process)
    output = Path(config.output)

    lines = {line["step"]: line for line in metrics(output)}
    assert sorted(lines) == [0, 1, 2, 3]
    assert [step for step, line in lines.items() if "held_out_reward" in line] == [0, 2, 3]
    names = {name for name in lines[3] if name.startswith("held_out_")}
    assert names == {
        "held_out_reward",
        "held_out_no_face_fraction",
        "held_out_reward_face_identity",
        "held_out_reward_temporal_consistency",
    }
    for step in (0, 2, 3):
        scores = json.loads((output / "samples" / f"step-{step}.json").read_text())
        assert [(score["row"], score["draw"]) for score in scores] == [(2, 0), (2, 1)]
        assert scores[0]["score"] != scores[1]["score"], "each noise gives a video of its own"
        assert [score["video"] for score in scores] == [f"step-{step}/row-2.mp4", None]
        assert (output / "samples" / f"step-{step}" / "row-2.mp4").stat().st_size > 500
        mean = sum(score["score"] for score in scores) / 2
        assert lines[step]["held_out_reward"] == pytest.approx(mean)
    assert lines[3]["held_out_reward"] != lines[0]["held_out_reward"]
    events = b"".join(path.read_bytes() for path in (output / "tensorboard").iterdir())
    assert b"held_out/reward" in events
    assert (output / "samples" / "before" / "row-0.mp4").is_file()

    boxes = json.loads((output / "samples" / "step-3.json").read_text())[0]["boxes"]
    assert len(boxes) == config.training.num_frames
    for left, top, right, bottom in filter(None, boxes):
        assert 0 < right - left <= 64 * 1.5
        assert 0 < bottom - top <= 64 * 1.5
    page = (output / "report.html").read_text()
    assert "finished" in page
    assert "could not be read" not in page
    assert page.count("<video ") == 4, "before and after, of the trained and of the held-out row that are shown"
    assert json.loads((output / "results.json").read_text())["results"]["report"] == f"{config.output}/report.html"
    history = json.loads((output / "run.json").read_text())
    [session] = history["sessions"]
    assert (history["total_steps"], session["step"], session["ended"]) == (3, 3, True)
    assert all(session["seconds"][phase] > 0 for phase in ("preparing", "training", "evaluating", "saving"))


def test_a_report_that_cannot_be_made_fails_nothing_and_the_page_says_why(
    make_config: MakeConfig, process: Process, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError("<b>of a chart</b> at https://user:hunter2@example.com")

    monkeypatch.setattr(make, "page_of_run", fail)
    config = make_config(rows=1, max_steps=1, name="unreported")
    run, told = assemble(config, process), []
    reporting = Reporting(run, config, told.append)
    reporting.begin()
    with MetricsLog(run.folder, process) as log, Reporter(None) as reporter:
        train_steps(run, log, reporter, reporting)
    assert reporting.finish(1) == f"{config.output}/report.html"
    page = (Path(config.output) / "report.html").read_text()
    assert "The report could not be made" in page
    assert "ZeroDivisionError: &lt;b&gt;of a chart" in page
    assert "hunter2" not in page + caplog.text
    assert "training goes on: ZeroDivisionError" in caplog.text
    assert told[0].report == f"{config.output}/report.html"
    assert run.saver.uploads.finish()


def test_evaluating_changes_nothing_that_is_trained_and_its_rows_are_never_trained_on(
    make_config: MakeConfig, process: Process
) -> None:
    two_rows = trained(assemble(make_config(rows=2, name="plain", max_steps=2), process))
    run = assemble(make_config(rows=3, name="evaluated", max_steps=2, eval_rows=1, eval_steps=1), process)
    assert {position for batch in run.order.batches() for position in batch.positions} == {0, 1}
    for name, value in trained(run).items():
        assert torch.equal(value, two_rows[name]), name


def test_evaluation_noises_are_never_trained_with(make_config: MakeConfig, process: Process) -> None:
    run = assemble(make_config(rows=2, eval_rows=1, cache_prefix=False), process)
    starts = [run.preparer.start(0, draw, purpose=purpose) for draw in (0, 1) for purpose in ("train", "sample")]  # type: ignore[arg-type]
    latents = [start.latents_BCthw for start in starts]
    assert all(not torch.equal(first, second) for number, first in enumerate(latents) for second in latents[:number])


class Listener(Reporter):
    """Remembers the metrics of every report."""

    def __init__(self) -> None:
        super().__init__(None)
        self.metrics: list[dict[str, float]] = []

    def update(self, **fields: Any) -> None:
        self.metrics.append(dict(fields.get("metrics", {})))
        super().update(**fields)


def test_the_last_held_out_reward_is_shown_again_after_a_resume(make_config: MakeConfig, process: Process) -> None:
    given = {"rows": 3, "eval_rows": 1, "save_steps": 1}
    first = assemble(make_config(**given, max_steps=1), process)
    trained(first)
    measured = first.evaluation.latest
    assert measured
    assert first.saver.uploads.finish()
    resumed = assemble(make_config(**given, max_steps=3), process)
    assert resumed.evaluation.latest == measured
    with MetricsLog(resumed.folder, process, 1) as log, Listener() as reporter:
        train_steps(resumed, log, reporter)
    shown = [metrics["held_out_reward"] for metrics in reporter.metrics]
    assert shown == [measured["held_out_reward"], resumed.evaluation.latest["held_out_reward"]]
    assert ["held_out_reward" in line for line in metrics(resumed.folder)] == [True, False, True], (
        "a line says when it was measured"
    )
    assert resumed.saver.uploads.finish()


def test_sample_videos_that_cannot_be_uploaded_stop_nothing_and_are_there_at_the_end(
    make_config: MakeConfig, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    run = assemble(make_config(rows=3, eval_rows=1, num_sample_videos=1), process)
    samples = Path(run.config.output) / "samples"
    samples.touch()
    for step in (0, run.order.total_steps):
        assert "held_out_reward" in run.evaluation.measure(step)
    assert not run.saver.uploads.finish()
    complaints = [record.message for record in caplog.records if "could not be uploaded" in record.message]
    assert len(complaints) == 1
    assert "samples/step-0/row-2.mp4 could not be uploaded, and is tried again" in complaints[0]
    samples.unlink()
    assert run.saver.uploads.finish()
    names = [f"step-{step}" for step in (0, run.order.total_steps)]
    written = sorted(path.relative_to(samples).as_posix() for path in samples.rglob("*") if path.is_file())
    assert written == sorted([*(f"{name}.json" for name in names), *(f"{name}/row-2.mp4" for name in names)])


def hide_faces(run: Run) -> None:
    """Let the decoder show a grey picture from now on."""
    run.feedback.rollout.models.vae.model.decoder.head[-1].weight.data.zero_()


@pytest.mark.parametrize("rewards", [None, BOTH], ids=["face", "both"])
def test_videos_without_any_face_are_counted_and_penalised_and_training_goes_on(
    make_config: MakeConfig, process: Process, rewards: Any
) -> None:
    given = {"eval_rows": 1, "max_steps": 2, "missing_face_penalty": -0.3, "num_sample_videos": 1, "rewards": rewards}
    run = assemble(make_config(rows=3, **given), process)
    shown = run.evaluation.measure(0)
    assert shown["held_out_no_face_fraction"] < 1
    before = lora(run)
    hide_faces(run)
    after = trained(run)
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert before.keys() == after.keys()
    for line in metrics(run.folder):
        assert line["no_face_fraction"] == 1
        assert line.get("reward_face_identity", line["reward"]) == pytest.approx(-0.3)
        assert line["bad_steps"] == 0
    last = metrics(run.folder)[-1]
    assert last["held_out_no_face_fraction"] == 1
    assert last.get("held_out_reward_face_identity", last["held_out_reward"]) == pytest.approx(-0.3)
    assert last["held_out_reward"] < shown["held_out_reward"]
