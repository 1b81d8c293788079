"""Checkpoints are whole or not there; metrics can be read by machines."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer import checkpoint as checkpointing
from rewardfl_trainer.checkpoint import write_whole
from rewardfl_trainer.collective import on_main
from rewardfl_trainer.environment import Process
from rewardfl_trainer.feedback import Outcome
from rewardfl_trainer.manifest import MANIFEST_FILE
from rewardfl_trainer.metrics import MetricsLog, mean_over_ranks, peak_memory_gb
from rewardfl_trainer.order import Position
from tests.unit.checkpoints import MAIN, saver, train_a_step
from tests.unit.small_networks import small_dit

pytestmark = pytest.mark.usefixtures("process_group")


def test_a_checkpoint_holds_weights_and_state_and_a_manifest_that_describes_them(tmp_path: Path) -> None:
    made = saver(tmp_path)
    train_a_step(made)
    made.save(Position(step=5))
    assert made.uploads.finish()
    folder = tmp_path / "out" / "checkpoints" / "step-5"
    assert made.uploads.uploaded is not None
    assert (made.uploads.uploaded.step, made.uploads.uploaded.uri) == (5, str(folder))
    names = ["lora.safetensors", "manifest.json", "state-00001.safetensors", "state.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert manifest["step"] == 5
    assert [file["name"] for file in manifest["files"]] == [name for name in names if name != "manifest.json"]
    for file in manifest["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_state_larger_than_a_file_is_spread_over_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "STATE_FILE_BYTES", 1000)
    made = saver(tmp_path)
    train_a_step(made)
    made.save(Position(step=1))
    assert made.uploads.finish()
    paths = sorted((tmp_path / "out" / "checkpoints" / "step-1").glob("state-*.safetensors"))
    assert len(paths) > 3
    found = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    expected = dict(made.engine.state.tensors())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_lora_file_says_how_it_was_made(tmp_path: Path) -> None:
    saver(tmp_path).save_final(7)
    with safe_open(tmp_path / "out" / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "7"
    assert (metadata["lora_base_model"], metadata["lora_rank"], metadata["lora_alpha"]) == ("dit2", "2", "2.0")


def test_full_training_saves_each_network_with_the_keys_it_was_loaded_with(tmp_path: Path) -> None:
    made = saver(tmp_path, lora_base_model=None, kl_weight=0)
    assert made.save_final(1) == [str(tmp_path / "out" / "dit2.safetensors")]
    saved = load_file(tmp_path / "out" / "dit2.safetensors")
    assert saved.keys() == small_dit().state_dict().keys()


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lora.safetensors"
    write_whole(path, {"weight": torch.ones(2)}, {})

    def half(tensors: dict[str, torch.Tensor], target: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, target, metadata=metadata)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, {"weight": torch.zeros(2)}, {})
    assert torch.equal(load_file(path)["weight"], torch.ones(2))


def test_metrics_are_one_json_object_a_line_and_tensorboard_events(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, MAIN) as log:
        log.write(1, {"reward": 0.5, "grad_norm": math.inf})
        log.write(2, {"reward": 0.6, "grad_norm": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "reward": 0.5, "grad_norm": None}, {"step": 2, "reward": 0.6, "grad_norm": 1.0}]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/reward" in events.read_bytes()


def test_other_ranks_write_no_metrics(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "rank-1", Process(rank=1, world_size=2, device=torch.device("cpu"))) as log:
        log.write(1, {"reward": 0.5})
    assert not (tmp_path / "rank-1").exists()


def test_outcomes_are_averaged() -> None:
    means = mean_over_ranks([Outcome(1, 0.2, 0.0, 0.0), Outcome(3, 0.4, 0.1, 0.5)], MAIN)
    assert means == pytest.approx({"loss": 2, "reward": 0.3, "kl": 0.05, "no_face_fraction": 0.25})


def test_the_rewards_own_numbers_are_averaged_too() -> None:
    outcomes = [Outcome(1, 0.2, 0.0, 0.0, {"reward_temporal_consistency": score}) for score in (0.5, 0.7)]
    assert mean_over_ranks(outcomes, MAIN)["reward_temporal_consistency"] == pytest.approx(0.6)


def test_the_peak_of_memory_on_a_cpu_is_the_processes_and_grows_with_it() -> None:
    before = peak_memory_gb(torch.device("cpu"))
    large = torch.ones(round(before * 1e9) + 50_000_000, dtype=torch.uint8)
    assert peak_memory_gb(torch.device("cpu")) > before + 0.04
    del large
    assert peak_memory_gb(torch.device("cpu")) > before + 0.04


def test_an_error_of_the_main_rank_keeps_reason_remedy_and_exit_code() -> None:
    def fail() -> None:
        raise RewardFLError(Reason.BAD_DATASET, "row 3: no such video", "Upload it.", ExitCode.BAD_DATA)

    with pytest.raises(RewardFLError, match="row 3") as caught:
        on_main(MAIN, fail)
    assert (caught.value.reason, caught.value.hint, caught.value.exit_code) == (
        Reason.BAD_DATASET,
        "Upload it.",
        ExitCode.BAD_DATA,
    )
    assert on_main(MAIN, lambda: 7) == 7
