"""The guard ends real runs on the tiny family: at the step of the verdict, with everything saved, also after an interruption."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.guard import Guard
from rewardfl_api.trainer_config import ProgressTarget, TrainerConfig
from rewardfl_trainer import suspension
from rewardfl_trainer.environment import Process
from rewardfl_trainer.failures import Terminated
from rewardfl_trainer.manifest import Manifest
from rewardfl_trainer.metrics import MetricsLog
from rewardfl_trainer.progress import Reporter
from rewardfl_trainer.run import AlreadyDoneError, Run, assemble
from rewardfl_trainer.train import train, train_steps
from tests.distributed import warm
from tests.distributed.conftest import MakeConfig
from tests.distributed.test_evaluation import hide_faces

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 300
STEPS = 6
SMALL = {"num_frames": 5, "max_pixels": 48 * 48, "num_inference_steps": 2, "mid_timestep": 1, "final_timestep": 1}
ANY_KL = {"kl": {"max": 1e-12, "steps": 2}}
"""The LoRA's first step is made with an untrained model, whose KL is 0; from then on it is above that."""


def guarded(make: MakeConfig, rules: dict[str, Any] | None, **training: Any) -> TrainerConfig:
    given = {"rows": 3, "eval_rows": 1, "max_steps": STEPS, "save_steps": 100, **SMALL, **training}
    config = make(**given)  # type: ignore[arg-type]
    return config.copy_with(guard=None if rules is None else Guard.model_validate(rules))


def metrics(config: TrainerConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def read(config: TrainerConfig, name: str) -> Any:
    return json.loads((Path(config.output) / name).read_text(encoding="utf-8"))


def steps_of(run: Run) -> int:
    with MetricsLog(run.folder, run.process, run.order.start.step) as log, Reporter(None) as reporter:
        return train_steps(run, log, reporter)


@pytest.mark.usefixtures("warm_server")
def test_two_ranks_stop_at_the_same_step_with_a_whole_checkpoint_and_all_results(
    make_config: MakeConfig, process: Process, tmp_path: Path
) -> None:
    config = guarded(make_config, ANY_KL)
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(), encoding="utf-8")
    warm.finish(warm.start_ranks(2, warm.train, path, log=tmp_path / "log"), TIMEOUT_SECONDS)

    assert [line["step"] for line in metrics(config)] == [0, 1, 2]
    assert metrics(config)[1]["kl"] < 1e-12 < metrics(config)[2]["kl"]
    assert "held_out_reward" in metrics(config)[2], "a run that ends is evaluated at its end"
    folder = Path(config.output) / "checkpoints" / "step-2"
    Manifest.read(folder / "manifest.json").verify(folder)
    trip = read(config, "checkpoints/step-2/state.json")["guard"]["trip"]
    assert (trip["reason"], trip["action"], trip["step"]) == (Reason.KL_TOO_HIGH, "Stop", 2)
    assert "above guard.kl.max=1e-12" in trip["message"]
    results = read(config, "results.json")
    assert results["step"] == 2
    assert results["results"]["best_checkpoint"] == read(config, "best.json") == {
        "step": 2, "score": metrics(config)[2]["held_out_reward"], "uri": f"{config.output}/checkpoints/step-2",
    }  # fmt: skip
    for name in ("lora.safetensors", "report.html"):
        assert (Path(config.output) / name).stat().st_size > 0, name

    assert "stopped by its guard" in (Path(config.output) / "report.html").read_text(encoding="utf-8")

    with pytest.raises(AlreadyDoneError, match="the guard stopped the run after step 2") as done:
        assemble(config, process)
    assert done.value.trip is not None
    going_on = assemble(config.copy_with(guard=Guard.model_validate({"kl": {"max": 1e9}})), process)
    assert steps_of(going_on) == STEPS
    assert going_on.saver.uploads.finish()


def test_a_stopped_run_that_is_interrupted_before_its_results_are_there_only_writes_them(
    make_config: MakeConfig, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    config = guarded(make_config, ANY_KL)
    run = assemble(config, process)
    assert steps_of(run) == 2
    assert run.saver.uploads.finish()
    assert not (Path(config.output) / "results.json").exists()

    train(config, process)

    assert [line["step"] for line in metrics(config)] == [1, 2], "no step is made any more"
    assert read(config, "results.json")["step"] == 2
    assert (Path(config.output) / "lora.safetensors").is_file()


def test_an_interrupted_run_is_stopped_at_the_same_step_as_an_unbroken_one(make_config: MakeConfig, process: Process) -> None:
    """The window of three steps reaches back over the interruption after the second."""
    rules = {"kl": {"max": 1e-12, "steps": 4}}
    config = guarded(make_config, rules, save_steps=2, max_steps=2)
    first = assemble(config, process)
    assert steps_of(first) == 2
    assert first.saver.uploads.finish()
    resumed = assemble(guarded(make_config, rules, save_steps=2), process)
    assert resumed.order.start.step == 2
    assert steps_of(resumed) == 4
    assert resumed.saver.uploads.finish()


def test_videos_without_faces_stop_a_run_and_what_was_best_before_is_kept(make_config: MakeConfig, process: Process) -> None:
    rules = {"noFace": {"maxFraction": 0.9, "steps": 3}}
    config = guarded(make_config, rules, eval_steps=1, save_steps=1, save_total_limit=1, missing_face_penalty=-1.0)
    first = assemble(config.copy_with(training=config.training.copy_with(max_steps=1)), process)
    assert steps_of(first) == 1
    assert first.saver.uploads.finish()
    run = assemble(config, process)
    hide_faces(run)
    assert steps_of(run) == 4
    assert run.saver.uploads.finish()
    assert run.watcher.trip is not None
    assert run.watcher.trip.reason is Reason.FACES_VANISHED
    assert read(config, "best.json")["step"] == 1
    assert sorted(path.name for path in (Path(config.output) / "checkpoints").iterdir()) == ["step-1", "step-4"]


def test_a_run_by_hand_that_asks_to_be_suspended_ends_as_if_stopped_and_goes_on_when_it_is_started_again(
    make_config: MakeConfig, process: Process
) -> None:
    config = guarded(make_config, {"action": "Suspend", **ANY_KL}, eval_rows=0)
    for ends_after in (2, 4):
        run = assemble(config, process)
        with pytest.raises(Terminated):
            steps_of(run)
        assert run.watcher.trip is not None
        assert (run.watcher.trip.action, run.watcher.trip.step) == ("Suspend", ends_after)
        assert (Path(config.output) / "checkpoints" / f"step-{ends_after}" / "manifest.json").is_file()
    assert not (Path(config.output) / "results.json").exists()


class Cluster(Reporter):
    """Remembers what is told of the guard and, if it is to, stops the run as a suspended job's pod is stopped."""

    def __init__(self, *, suspends: bool) -> None:
        super().__init__(None)
        self.suspends, self.told = suspends, list[dict[str, Any]]()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        if fields.get("guard") is not None:
            self.told.append(fields)
            if self.suspends:
                os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("suspends", [True, False], ids=["suspended", "nobody suspends it"])
def test_a_run_in_a_cluster_says_so_when_its_checkpoint_has_arrived_and_waits_to_be_suspended(
    make_config: MakeConfig, process: Process, monkeypatch: pytest.MonkeyPatch, suspends: bool
) -> None:
    monkeypatch.setattr(suspension, "PATIENCE_SECONDS", 30.0 if suspends else 0.0)
    config = guarded(make_config, {"action": "Suspend", **ANY_KL}, eval_steps=2)
    run = assemble(config.copy_with(progress=ProgressTarget(namespace="team", config_map="face-progress")), process)
    cluster = Cluster(suspends=suspends)
    with MetricsLog(run.folder, process) as log, cluster:
        if suspends:
            with pytest.raises(Terminated):
                train_steps(run, log, cluster)
        else:
            assert train_steps(run, log, cluster) == 2, "it ends there: GPUs that wait cost as much as those that train"
    [told] = cluster.told
    assert told["guard"] == run.watcher.trip
    assert told["checkpoint"].step == 2
    assert run.saver.uploads.finish()


def test_an_evaluation_that_is_the_best_so_far_is_saved_at_once_without_any_guard(
    make_config: MakeConfig, process: Process
) -> None:
    config = guarded(make_config, None, eval_steps=1, max_steps=2)
    run = assemble(config, process)
    assert steps_of(run) == 2
    assert run.saver.uploads.finish()
    scores = {line["step"]: line["held_out_reward"] for line in metrics(config)}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert read(config, "best.json")["step"] == best
    assert (Path(config.output) / "checkpoints" / "step-1" / "manifest.json").is_file(), "no other step than 2 is due"
