"""`make bench-trainer`: a training step of this trainer against the straightforward form, on a CPU, and counted at A14B's size.

Both forms run in processes of their own, by turns, on the same rows with the same noise and LoRA; what counts is the ratio. It
writes docs/benchmarks/trainer.md and trainer.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import midsize
from tests.benchmarks.trainer_report import table

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "benchmarks"
FORMS = ("reference", "rewardfl")
GIGABYTE, PETA = 1e9, 1e15
LIBRARIES = ("torch", "diffsynth", "deepspeed", "onnx2torch")


@dataclass(frozen=True)
class Size:
    """A configuration that is measured."""

    name: str
    pixels: int
    num_frames: int
    steps: int
    rounds: int


SIZES = (Size("tiny", 64, 9, steps=5, rounds=3), Size("mid-size", 96, 9, steps=3, rounds=3))


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="make bench-trainer", description=__doc__)
    parser.add_argument("--without-a14b", action="store_true", help="leave out the estimate at A14B's size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        families = write_families(Path(scratch))
        measured = {size.name: compare(size, families[size.name], Path(scratch)) for size in SIZES}
    a14b = {} if options.without_a14b else estimate_a14b()
    FOLDER.mkdir(parents=True, exist_ok=True)
    numbers = summary(measured, a14b)
    (FOLDER / "trainer.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (FOLDER / "trainer.md").write_text(table(measured, a14b, numbers), encoding="utf-8")
    print(json.dumps(numbers, indent=2))


def write_families(scratch: Path) -> dict[str, Path]:
    """Write the tiny and the mid-size family; return their folders."""
    from rewardfl_trainer import tiny

    tiny.write(scratch / "tiny")
    midsize.write(scratch / "tiny", scratch / "mid-size")
    return {"tiny": scratch / "tiny", "mid-size": scratch / "mid-size"}


def compare(size: Size, family: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """Return what both forms took, by form: medians over all steps of all rounds."""
    found: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for round_number in range(size.rounds):
        for form in FORMS:
            started = time.monotonic()
            found[form].append(child(size, family, form, scratch / f"{size.name}-{form}-{round_number}"))
            print(f"{size.name} {form} round {round_number + 1}/{size.rounds}: {time.monotonic() - started:.0f} s", flush=True)
    return {form: merged(results) for form, results in found.items()}


def child(size: Size, family: Path, form: str, folder: Path) -> dict[str, Any]:
    """Measure one form in a process of its own."""
    arguments = {"family": str(family), "folder": str(folder), "form": form, "pixels": size.pixels}
    arguments |= {"num_frames": size.num_frames, "steps": size.steps}
    folder.mkdir(parents=True)
    # Freed memory goes back to the kernel, so that the peaks are those of the parts.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.benchmarks.trainer_child", json.dumps(arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def merged(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over all rounds: seconds of a step and of its parts, peak bytes by part, and the first loss."""
    steps = [step for result in results for step in result["steps"]]
    names = sorted({name for step in steps for name in step["parts"]})
    return {
        "seconds": statistics.median(step["seconds"] for step in steps),
        "seconds_by_part": {name: statistics.median(step["parts"].get(name, 0.0) for step in steps) for name in names},
        "peak_bytes": statistics.median(result["peak_bytes"] for result in results),
        "peak_bytes_by_part": {
            name: statistics.median(result["peak_bytes_by_part"].get(name, 0) for result in results) for name in names
        },
        "loss": results[0]["steps"][0]["loss"],
    }


def estimate_a14b() -> dict[str, Any]:
    """Return the counted FLOPs of a sample and the estimated peak of a GPU at A14B's size, 480x480x81, and their ratios."""
    from rewardfl_trainer.estimate.reference import a14b

    reference, every = a14b("reference"), a14b("rewardfl")
    sampled, offload = a14b("rewardfl", "sampled"), a14b("rewardfl", offload=True)
    print("A14B: counted", flush=True)
    return {
        "flops_ratio_kl_all": round(every.flops / reference.flops, 4),
        "flops_ratio_kl_sampled": round(sampled.flops / reference.flops, 4),
        "a14b_peak_gb_offload": round(offload.peak_bytes / GIGABYTE, 2),
        "a14b_peak_gb": round(every.peak_bytes / GIGABYTE, 2),
        "forms": {
            name: {"pflops": figures.flops / PETA, "peak_gb": figures.peak_bytes / GIGABYTE, "moment": figures.moment}
            for name, figures in {
                "reference": reference,
                "rewardfl": every,
                "rewardfl, kl_steps: sampled": sampled,
                "rewardfl, offloaded": offload,
            }.items()
        },
    }


def summary(measured: Mapping[str, Mapping[str, Any]], a14b: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of trainer.json. Of times and memory: reference over this trainer; of FLOPs: the other way round."""
    reference, ours = (measured["mid-size"][form] for form in FORMS)
    return {
        "step_time_ratio": round(reference["seconds"] / ours["seconds"], 3),
        "peak_memory_ratio": round(reference["peak_bytes"] / ours["peak_bytes"], 3),
        **{name: a14b[name] for name in A14B_NAMES if name in a14b},
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


A14B_NAMES = ("flops_ratio_kl_all", "flops_ratio_kl_sampled", "a14b_peak_gb_offload", "a14b_peak_gb")


if __name__ == "__main__":
    main()
