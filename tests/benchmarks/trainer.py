"""`make bench-trainer`: a training step of this trainer against the straightforward form, on a CPU, and counted at A14B's size.

Both forms run in processes of their own on the same rows with the same noise and LoRA. They make their steps by turns, so that
whatever else the machine does slows both alike; what counts is the ratio. It writes docs/benchmarks/trainer.md and trainer.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import midsize
from tests.benchmarks.trainer_report import Measured, Step, table

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "benchmarks"
FORMS = ("reference", "rewardfl")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Threads that wait for a core which another process has make a step many times as long."""
TRIMMED = {**ONE_THREAD, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed memory goes back to the kernel, so that the peaks are those of the parts. Half of the time then goes into page faults."""
MEMORY_STEPS = 2
GIGABYTE, PETA = 1e9, 1e15
LIBRARIES = ("torch", "diffsynth", "deepspeed", "onnx2torch")


@dataclass(frozen=True)
class Size:
    """A configuration that is measured."""

    name: str
    pixels: int
    num_frames: int
    steps: int


SIZES = (Size("tiny", 64, 9, steps=15), Size("mid-size", 96, 9, steps=9))


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


class Child:
    """A form in a process of its own."""

    def __init__(self, size: Size, family: Path, form: str, folder: Path, environment: Mapping[str, str]) -> None:
        arguments = {"family": str(family), "folder": str(folder), "form": form, "pixels": size.pixels}
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.benchmarks.trainer_child"]
        command.append(json.dumps({**arguments, "num_frames": size.num_frames}))
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def step(self) -> Step:
        """Have it make a step."""
        assert self.process.stdin
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Step:
        """Return what it says next; lines of libraries are passed over."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"a form ended with exit code {self.process.wait()}")


def compare(size: Size, family: Path, scratch: Path) -> dict[str, Measured]:
    """Measure both forms: the seconds of steps that they make by turns, then the memory of one after the other."""
    timed = by_turns(size, size.steps, {form: (family, scratch / f"{size.name}-{form}") for form in FORMS})
    found = {}
    for form in FORMS:
        steps = by_turns(size, MEMORY_STEPS, {form: (family, scratch / f"{size.name}-{form}-memory")}, TRIMMED)
        found[form] = Measured(timed[form], steps[form])
    return found


def by_turns(
    size: Size, num_steps: int, forms: Mapping[str, tuple[Path, Path]], environment: Mapping[str, str] = ONE_THREAD
) -> dict[str, list[Step]]:
    """Have forms, each with its family and folder, make steps by turns; return the steps by form."""
    children: dict[str, Child] = {}
    found: dict[str, list[Step]] = {form: [] for form in forms}
    try:
        for form, (family, folder) in forms.items():
            children[form] = Child(size, family, form, folder, environment)
        for number in range(num_steps):
            for form, child in children.items():
                found[form].append(child.step())
            taken = ", ".join(f"{form} {steps[-1]['seconds']:.2f} s" for form, steps in found.items())
            print(f"{size.name} {number + 1}/{num_steps}: {taken}", flush=True)
    finally:
        for child in children.values():
            child.end()
    return found


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


def summary(measured: Mapping[str, Mapping[str, Measured]], a14b: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of trainer.json. Of times and memory: reference over this trainer; of FLOPs: the other way round."""
    reference, ours = (measured["mid-size"][form] for form in FORMS)
    return {
        "step_time_ratio": round(reference.ratio(ours), 3),
        "peak_memory_ratio": round(reference.peak() / ours.peak(), 3),
        **{name: a14b[name] for name in A14B_NAMES if name in a14b},
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


A14B_NAMES = ("flops_ratio_kl_all", "flops_ratio_kl_sampled", "a14b_peak_gb_offload", "a14b_peak_gb")


if __name__ == "__main__":
    main()
