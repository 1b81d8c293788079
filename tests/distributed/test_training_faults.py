"""Training that goes wrong ends as it should: NaNs are skipped and counted, bad configurations are named, nothing hangs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from rewardfl_api.errors import FINAL_EXIT_CODES, ExitCode, Reason, RewardFLError
from rewardfl_trainer.environment import Process
from rewardfl_trainer.failures import TERMINATION_LOG_VARIABLE, run_main
from rewardfl_trainer.metrics import MetricsLog
from rewardfl_trainer.progress import Reporter
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.train import train, train_steps
from tests.distributed import warm
from tests.distributed.conftest import MakeConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_server")]

TIMEOUT_SECONDS = 600

UNCACHED = {"cache_conditions": False, "cache_prefix": False}


def poison(run: Run) -> None:
    """Let the decoder compute what is not a number from now on."""
    run.feedback.rollout.models.vae.model.conv2.weight.data.fill_(torch.nan)


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.trainable.parameters()}


@pytest.mark.parametrize("stage", [0, 2])
def test_steps_that_are_not_finite_are_skipped_and_end_the_run_with_the_last_checkpoint(
    make_config: MakeConfig, process: Process, stage: int
) -> None:
    section = {"zero_optimization": {"stage": stage}}
    run = assemble(make_config(deepspeed=section, max_steps=3, max_bad_steps=2, save_steps=1), process)
    with MetricsLog(run.folder, process) as log, Reporter(None) as reporter:
        train_steps(run, log, reporter)
        good, rate = state(run), run.engine.schedule.get_last_lr()
        poison(run)
        with pytest.raises(RewardFLError, match=r"not finite 2 times in a row \(training\.max_bad_steps\)") as caught:
            train_steps(run, log, reporter)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.DIVERGED, ExitCode.BAD_CONFIGURATION)
    assert run.engine.schedule.get_last_lr() == rate
    for name, value in state(run).items():
        assert torch.equal(value, good[name]), name
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["bad_steps"] for line in lines] == [0, 0, 0, 1, 2]
    assert lines[-1]["loss"] is None
    assert (run.folder / "checkpoints" / "step-3" / "manifest.json").is_file()
    assert run.saver.uploads.finish()


def end_of(config: Path, tmp_path: Path) -> tuple[int | None, dict[str, object]]:
    """Run the trainer as a pod does; return exit code and termination message."""
    message = tmp_path / "termination-log"
    trainer = warm.start(warm.train, config, variables={"TERMINATION_LOG": str(message)})
    trainer.join(TIMEOUT_SECONDS)
    return trainer.exitcode, json.loads(message.read_text())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_frames", 80, "training.num_frames=80: must be 4k+1 (77 or 81)"),
        ("model_name", "wan9_9", "wan9_9"),
        ("learning_rat", 1e-4, "training.learning_rat"),
    ],
)
def test_a_bad_configuration_ends_with_78_and_names_the_field(
    make_config: MakeConfig, tmp_path: Path, field: str, value: object, expected: str
) -> None:
    content = make_config().to_trainer()
    content["training"][field] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    code, message = end_of(path, tmp_path)
    assert code == ExitCode.BAD_CONFIGURATION
    assert message["reason"] == Reason.BAD_CONFIGURATION
    assert expected in str(message["message"])
    assert message["hint"]


def test_a_missing_model_ends_with_66_before_any_network_is_loaded(make_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(make_config(model_paths=[str(tmp_path / "gone.safetensors")]).dump())
    code, message = end_of(path, tmp_path)
    assert (code, message["reason"]) == (ExitCode.MISSING_INPUT, Reason.MODEL_NOT_FOUND)
    assert "gone.safetensors" in str(message["message"])


def test_an_output_that_cannot_be_written_ends_with_74_so_that_it_is_tried_again(
    make_config: MakeConfig, process: Process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(TERMINATION_LOG_VARIABLE, str(tmp_path / "termination-log"))
    config = make_config().copy_with(output=str(tmp_path / "file" / "below"))
    assert run_main(lambda: train(config, process)) == ExitCode.IO_ERROR == 74
    message = json.loads((tmp_path / "termination-log").read_text())
    assert (message["exitCode"], message["reason"]) == (74, Reason.IO_FAILED)
    assert f"output={tmp_path}/file/below: Not a directory" in message["message"]
    assert ExitCode.IO_ERROR not in FINAL_EXIT_CODES


@pytest.mark.parametrize(
    ("training", "code", "expected"),
    [
        ({"train_batch_size": 7}, ExitCode.BAD_CONFIGURATION, r"train_batch_size=7: .* 1 \* .* 1 \* world size 1 = 1"),
        ({"lora_target_modules": "q,to_q"}, ExitCode.BAD_CONFIGURATION, r"no linear layer ends with 'to_q'"),
        ({"extra_inputs": ""}, ExitCode.BAD_CONFIGURATION, r"extra_inputs='': the DiT needs input_image"),
        ({"mid_timestep": 0, "final_timestep": 1}, ExitCode.BAD_CONFIGURATION, r"trainable_models=dit2: no gradient reaches it"),
        ({"eval_rows": 2}, ExitCode.BAD_CONFIGURATION, r"eval_rows=2: the dataset has 2 usable rows"),
        (
            {"tokenizer_path": ".", "cache_conditions": False, "cache_prefix": False},
            ExitCode.MISSING_INPUT,
            r"tokenizer_path=\.: holds no tokenizer",
        ),
        ({"reward_model_path": "/nowhere"}, ExitCode.MISSING_INPUT, r"/nowhere/\S*\.onnx: no such file"),
    ],
)
def test_what_cannot_work_is_refused_before_any_large_network_is_loaded(
    make_config: MakeConfig,
    process: Process,
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, object],
    code: ExitCode,
    expected: str,
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("rewardfl_trainer.models._load_network", lambda *arguments: loaded.append(arguments))
    with pytest.raises(RewardFLError, match=expected) as caught:
        assemble(make_config(**training), process)
    assert caught.value.exit_code == code
    assert loaded == []


def test_a_damaged_dataset_is_refused_with_every_bad_row_before_any_large_network_is_loaded(
    make_config: MakeConfig, process: Process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset = tmp_path / "ein Datensatz 脸"
    shutil.copytree(make_config(rows=3).dataset, dataset)
    first, second, _ = sorted((dataset / "videos").iterdir())
    first.write_bytes(first.read_bytes()[:1000])
    second.unlink()
    loaded: list[object] = []
    monkeypatch.setattr("rewardfl_trainer.models._load_network", lambda *arguments: loaded.append(arguments))
    with pytest.raises(RewardFLError, match=r"2 of the 3 rows of metadata\.csv cannot be used") as caught:
        assemble(make_config(rows=3).copy_with(dataset=str(dataset)), process)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_DATASET, ExitCode.BAD_DATA)
    assert first.name in caught.value.message
    assert second.name in caught.value.message
    assert loaded == []
