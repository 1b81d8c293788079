"""One form of the training step, measured in a process of its own.

Reads a line for each step that it is to make, and answers with a line of JSON. Its first line says that it is ready.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer import environment
from rewardfl_trainer.environment import Process
from rewardfl_trainer.run import Run, assemble
from tests.benchmarks.meter import Meter, memory
from tests.benchmarks.reference_form import ReferenceForm

KEPT = ("cache_conditions", "cache_references", "cache_prefix")


def main(arguments: dict[str, Any]) -> None:
    """Make a step for each line of the standard input; print its seconds, peaks and loss."""
    config = configuration(**arguments)
    environment.prepare(config)
    process = environment.join_process_group(config)
    base = memory("VmRSS")
    run, loss = FORMS[config.name](config, process)
    meter = run.stopwatch
    assert isinstance(meter, Meter)
    step(run, loss, meter, base)  # the first one fills caches of the libraries
    print("{}", flush=True)
    for _ in sys.stdin:
        print(json.dumps(step(run, loss, meter, base)), flush=True)


Loss = Callable[[], tuple[Tensor, float]]


def step(run: Run, loss: Loss, meter: Meter, base: int) -> dict[str, Any]:
    """Make one optimizer step; return its seconds, those of its parts, their peak bytes beyond `base`, and the loss."""
    meter.read()
    meter.peaks.clear()
    started = time.perf_counter()
    value = run.engine.accumulate(loss)
    run.engine.step(value)
    seconds = time.perf_counter() - started
    parts = {name.removeprefix("seconds_"): taken for name, taken in meter.read().items()}
    return {"seconds": seconds, "parts": parts, "peaks": {name: peak - base for name, peak in meter.peaks.items()}, "loss": value}


def reference(config: TrainerConfig, process: Process) -> tuple[Run, Loss]:
    """The straightforward form: nothing kept, everything resident."""
    run = assemble(config, process, stopwatch=Meter(process.device))
    form, position = ReferenceForm.of(run), first_row(run)

    def loss() -> tuple[Tensor, float]:
        value = form.loss(position)
        return value, float(value.detach())

    return run, loss


def rewardfl(config: TrainerConfig, process: Process) -> tuple[Run, Loss]:
    """The trainer as it is."""
    run = assemble(config, process, stopwatch=Meter(process.device))
    position = first_row(run)

    def loss() -> tuple[Tensor, float]:
        with run.stopwatch.part("prepare"):
            prepared = run.preparer(position)
        value, outcome = run.feedback.loss(prepared, visit=0)
        return value, outcome.loss

    return run, loss


def first_row(run: Run) -> int:
    """Return the row of the first step: the one whose leading steps are kept."""
    return next(run.order.batches()).positions[0]


FORMS = {"reference": reference, "rewardfl": rewardfl}


def configuration(family: str, folder: str, form: str, pixels: int, num_frames: int) -> TrainerConfig:
    """Return the run's configuration: the objective, window and LoRA of the seed document."""
    root, work = Path(family), Path(folder)
    training: dict[str, Any] = {
        "model_paths": str(root / "wan22_paths.json"),
        "tokenizer_path": str(root / "Wan2.2-I2V-A14B" / "google" / "umt5-xxl"),
        "reward_model_path": str(root / "antelopev2"),
        "min_timestep_boundary": 0.9,
        "trainable_models": "dit2",
        "lora_base_model": "dit2",
        "learning_rate": 2.5e-6,
        "dtype": "fp32",
        "num_sample_videos": 0,
        "height": pixels,
        "width": pixels,
        "num_frames": num_frames,
        "max_steps": 1,
        **dict.fromkeys(KEPT, form == "rewardfl"),
    }
    return TrainerConfig.model_validate(
        {
            "name": form,
            "device": "cpu",
            "dataset": str(root / "dataset"),
            "output": str(work / "output"),
            "work_dir": str(work / "work"),
            "cache_dir": str(work / "cache"),
            "deepspeed": {"zero_optimization": {"stage": 0}},
            "training": training,
        }
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main(json.loads(sys.argv[1]))
