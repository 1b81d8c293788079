"""A run that is killed or stopped and resumed ends as one that is not: the same bits, on two ranks, wherever it was killed."""

import json
import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewardfl_api.deepspeed import DeepSpeedPreset, preset_config
from rewardfl_api.errors import ExitCode
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.report.data import load
from rewardfl_trainer.report.stored import Folder
from rewardfl_trainer.report.times import times_of
from tests.distributed import forked_ranks, warm
from tests.distributed.conftest import MakeConfig

pytestmark = pytest.mark.slow

STEPS = 12
KILLS = 10
SEED = 20261122
TIMEOUT_SECONDS = 800
WHOLE = 3
MEASURED_COLUMNS = ("seconds_", "frames_per_second", "peak_memory_gb")
FAST = {
    "num_frames": 5,
    "max_pixels": 48 * 48,
    "num_inference_steps": 2,
    "mid_timestep": 1,
    "final_timestep": 1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 3,
    "save_steps": 1,
    "save_total_limit": WHOLE,
    "max_steps": WHOLE,
}
FULL = {"lora_base_model": None, "dtype": "bf16"}
LAYOUTS: dict[str, tuple[DeepSpeedPreset, dict[str, Any]]] = {
    "zero0": ("zero0", {}),
    "zero2": ("zero2", {}),
    "zero2_cpuoffload": ("zero2_cpuoffload", {}),
    "zero3": ("zero3", {}),
    "full-bf16-zero0": ("zero0", FULL),
    "full-bf16-zero1": ("zero1", FULL),
}
"""What keeps masters and moments in different ways. zero2 is the one whose runs are killed."""


class Runs:
    """Runs of the trainer in one go: see forked_ranks.py."""

    def __init__(self, folder: Path, make: MakeConfig) -> None:
        self.folder, self.make = folder, make
        self.plan: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.results: dict[str, list[dict[str, Any]]] = {}

    def config(self, name: str, preset: DeepSpeedPreset = "zero2", **training: Any) -> TrainerConfig:
        return self.make(rows=4, name=name, deepspeed=section(preset), **{**FAST, **training})

    def first_checkpoint(self, layout: str) -> str:
        return str(Path(self.config(f"{layout}-straight").output) / "checkpoints" / "step-1")

    def add(self, config: TrainerConfig, **how: Any) -> None:
        path = self.folder / f"run-{len(self.plan)}.yaml"
        path.write_text(config.dump(), encoding="utf-8")
        self.plan.append({"config": str(path), **how})
        self.names.append(config.name)

    def start(self) -> None:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(self.plan), encoding="utf-8")
        results = self.folder / "results.json"
        variables = {"TERMINATION_LOG": str(self.folder / "termination-log")}
        warm.finish([warm.start(forked_ranks.main, path, results, variables=variables)], TIMEOUT_SECONDS)
        for name, result in zip(self.names, json.loads(results.read_text(encoding="utf-8")), strict=True):
            self.results.setdefault(name, []).append(result)

    def codes(self, name: str) -> list[list[int]]:
        return [result["codes"] for result in self.results[name]]


def section(preset: DeepSpeedPreset) -> dict[str, Any]:
    """Return the preset's section; see test_training_ranks.py for the reuse distance."""
    found = preset_config(preset)
    if found["zero_optimization"]["stage"] == 3:
        found["zero_optimization"]["stage3_max_reuse_distance"] = 0
    return found


def moments() -> list[dict[str, Any]]:
    """Return ten moments to kill at: while starting, amid a step, amid the files of a checkpoint."""
    generator = random.Random(SEED)
    made: list[dict[str, Any]] = []
    for number in range(KILLS):
        kind = generator.choice(["start", "step", "step", "writing", "writing"])
        if kind == "start":
            made.append({"after": generator.uniform(0.2, 1.5)})
        elif kind == "step":
            made.append({"step": number + 1, "after": generator.uniform(0, 0.6)})
        else:
            made.append({"writing": generator.randrange(1, 6), "after": 0})
        made[-1]["wipe"] = bool(generator.randrange(2))
    return made


@pytest.fixture(scope="module")
def runs(warm_server: None, make_module_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("plan"), make_module_config)
    for name in ("unbroken", "killed"):
        config = made.config(name, max_steps=STEPS, lr_scheduler_type="cosine", save_total_limit=2)
        for moment in moments() if name == "killed" else ():
            made.add(config, **moment)
        made.add(config)
    for name, (preset, training) in LAYOUTS.items():
        made.add(made.config(f"{name}-straight", preset, **training))
        if name != "zero2":
            made.add(made.config(f"{name}-resumed", preset, **training), onto=made.first_checkpoint(name))
    made.add(made.config("one-rank", gradient_accumulation_steps=2), ranks=1, onto=made.first_checkpoint("zero2"))
    made.add(made.config("to-zero3", "zero3"), onto=made.first_checkpoint("zero2"))
    made.add(made.config("from-zero3", "zero0"), onto=made.first_checkpoint("zero3"))
    made.add(made.config("stopped", save_steps=100), step=1, after=0, term=True)
    made.add(made.config("stopped"), writing=2, after=0, term=True, wipe=True)
    made.add(made.config("stopped"), wipe=True)
    made.add(made.config("other", lora_rank=2), onto=made.first_checkpoint("zero2"))
    made.add(made.config("unbroken", max_steps=STEPS, lr_scheduler_type="cosine", save_total_limit=2), wipe=True)
    made.start()
    return made


def content(config: TrainerConfig, step: int) -> dict[str, Any]:
    """Return all that a run has left: weights and state as bytes, metrics and counters without times."""
    output = Path(config.output)
    folder = output / "checkpoints" / f"step-{step}"
    state = json.loads((folder / "state.json").read_text())
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": bits(output.glob("*.safetensors")),
        "optimizer": bits(folder.glob("state-*.safetensors")),
        "state": {name: state[name] for name in ("position", "bad_steps", "schedule", "random")},
        "metrics": [{name: value for name, value in line.items() if not name.startswith(MEASURED_COLUMNS)} for line in lines],
    }


def bits(paths: Iterable[Path]) -> dict[str, bytes]:
    """Return the bytes of every tensor; safetensors writes its own header in no fixed order."""
    tensors = {f"{path.name}/{name}": tensor for path in paths for name, tensor in load_file(path).items()}
    return {name: bytes(tensor.flatten().view(torch.uint8).numpy()) for name, tensor in tensors.items()}


def assert_same(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert expected["weights"]
    assert expected["optimizer"]
    for name, value in expected.items():
        assert found[name] == value, name


def test_a_run_killed_ten_times_equals_an_unbroken_one_bit_for_bit(runs: Runs) -> None:
    assert runs.codes("killed") == [[-9, -9]] * KILLS + [[0, 0]]
    unbroken, killed = (content(runs.config(name), STEPS) for name in ("unbroken", "killed"))
    assert [line["step"] for line in unbroken["metrics"]] == list(range(1, STEPS + 1))
    assert_same(unbroken, killed)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "zero2"])
def test_a_run_resumed_from_the_output_equals_an_unbroken_one_under_every_layout(runs: Runs, layout: str) -> None:
    assert runs.codes(f"{layout}-resumed") == [[0, 0]]
    straight, resumed = (content(runs.config(f"{layout}-{how}"), WHOLE) for how in ("straight", "resumed"))
    assert_same(straight, resumed)


@pytest.mark.parametrize("name", ["one-rank", "to-zero3", "from-zero3"])
def test_another_number_of_ranks_or_zero_stage_may_resume(runs: Runs, name: str) -> None:
    assert runs.codes(name) in ([[0]], [[0, 0]])
    expected, found = (
        load_file(Path(runs.config(which).output) / "checkpoints" / f"step-{WHOLE}" / "state-00001.safetensors")
        for which in ("zero2-straight", name)
    )
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5)


def test_sigterm_to_one_rank_while_training_and_while_saving_ends_all_with_143_and_a_whole_checkpoint(runs: Runs) -> None:
    assert runs.codes("stopped") == [[ExitCode.TERMINATED] * 2] * 2 + [[0, 0]]
    straight, stopped = (content(runs.config(name), WHOLE) for name in ("zero2-straight", "stopped"))
    assert_same(straight, stopped)


@pytest.mark.parametrize(("name", "steps"), [("killed", STEPS), ("stopped", WHOLE)])
def test_every_start_of_an_interrupted_run_is_in_its_times_and_its_report_is_that_of_the_whole(
    runs: Runs, name: str, steps: int
) -> None:
    output = Path(runs.config(name).output)
    run = load(Folder(output))
    assert 1 < len(run.sessions) <= len(runs.codes(name))
    assert (run.sessions[-1].step, run.sessions[-1].ended, run.finished) == (steps, True, True)
    for earlier, later in pairwise(run.sessions):
        assert later.started >= earlier.started
        assert later.first_step <= earlier.step or not earlier.ended
    if name == "stopped":
        assert [session.ended for session in run.sessions] == [True] * 3
        assert [session.first_step for session in run.sessions[1:]] == [session.step for session in run.sessions[:-1]]
    times = times_of(run)
    assert times.restarts == len(run.sessions) - 1
    assert 0 < times.total <= sum(result["seconds"] for result in runs.results[name]) * 1.5 + 60
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "finished" in page
    assert f"step {steps} of {steps}" in page


def test_a_checkpoint_of_another_lora_rank_is_refused_with_both_values(runs: Runs) -> None:
    assert runs.codes("other") == [[ExitCode.BAD_CONFIGURATION] * 2]
    message = json.loads((runs.folder / "termination-log").read_text())["message"]
    assert "training.lora_rank=2: the checkpoint was made with 4" in message


def test_a_run_that_is_complete_ends_at_once_and_well(runs: Runs) -> None:
    assert runs.codes("unbroken") == [[0, 0], [0, 0]]
    first, again = (result["seconds"] for result in runs.results["unbroken"])
    assert again < first / 2


def test_old_checkpoints_are_deleted_here_and_there(runs: Runs) -> None:
    config = runs.config("killed")
    for folder in (Path(config.output), Path(config.work_dir) / "output"):
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"step-{STEPS - 1}", f"step-{STEPS}"]
