"""Outputs of runs for the report's tests, written by what the trainer writes them with; the numbers are the tests'."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from rewardfl_api.metrics import StepMetrics
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.disk import write_json
from rewardfl_trainer.files import METRICS_FILE
from rewardfl_trainer.report.data import Evaluation, RunData, Sample
from rewardfl_trainer.samples import SampleScore
from rewardfl_trainer.timeline import RUN_FILE, History, Session
from rewardfl_trainer.video import write_video

START = datetime(2026, 1, 1, tzinfo=UTC)
FRAMES, WIDTH, HEIGHT = 9, 96, 64
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></script>\"'&{{ 7 * 7 }}"
"""A prompt that would run a script in a page which does not escape it."""


def lines(steps: int, **values: Callable[[float], float | None]) -> list[StepMetrics]:
    """Lines of metrics; each value is a function of how much of the run is done, 0 to 1."""
    return [StepMetrics(step, {name: value(step / steps) for name, value in values.items()}) for step in range(1, steps + 1)]


def sample(row: int = 0, draw: int = 0, score: float = 0.5, **fields: Any) -> Sample:
    return Sample(row=row, draw=draw, score=score, **fields)


def evaluated(scores: Sequence[Sequence[float]], every: int = 10) -> dict[str, Any]:
    """Evaluations of a row and what is logged of them: the scores of each of its noises, one evaluation after the other."""
    evaluations, logged = [], []
    for number, noises in enumerate(scores):
        step = number * every
        evaluations.append(Evaluation(step, [sample(draw=draw, score=score) for draw, score in enumerate(noises)]))
        logged.append(StepMetrics(step, {"held_out_reward": sum(noises) / len(noises)}))
    return {"evaluations": evaluations, "lines": logged}


def run_with(logged: list[StepMetrics], evaluations: Sequence[Sequence[float]] = (), every: int = 10, **training: Any) -> RunData:
    """A run of these metrics, held-out scores and training parameters."""
    held_out = evaluated(evaluations, every)
    merged = sorted([*logged, *held_out["lines"]], key=lambda line: line.step)
    return RunData("run", {"training": training}, merged, evaluations=held_out["evaluations"])


def moving_face(number: int, size: tuple[int, int] = (HEIGHT, WIDTH), frames: int = FRAMES) -> torch.Tensor:
    """A video 3THW of a bright square that moves to the right by 6 pixels a frame, on a ground of its own colour."""
    video = torch.full((3, frames, *size), -0.6)
    video[number % 3] += 0.5
    for frame in range(frames):
        left = 4 + 6 * frame
        video[:, frame, 20:44, left : left + 24] = 0.8
    return video


def box(frame: int) -> list[float]:
    return [4.0 + 6 * frame, 20.0, 28.0 + 6 * frame, 44.0]


def write_run(
    folder: Path, *, name: str = "face-identity", rows: int = 4, steps: int = 40, gain: float = 0.2, **training: Any
) -> Path:
    """Write the output of a run that has ended: two starts, held-out rows with three noises, a hostile prompt."""
    folder.mkdir(parents=True)
    parameters = {
        "model_paths": ["dit", "vae"],
        "reward_model_path": "faces",
        "trainable_models": "dit2",
        "lora_base_model": "dit2",
    }
    parameters |= {"min_timestep_boundary": 0.9, "learning_rate": 1e-4, "eval_rows": 2, "eval_noise_seeds": 3, **training}
    config = TrainerConfig.model_validate(
        {"name": name, "dataset": "s3://data/<b>faces</b>/", "output": str(folder), "training": parameters}
    )
    (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
    trained = range(rows - 2)
    held_out = range(rows - 2, rows)
    for moment, part in (("before", 0.0), ("after", 1.0)):
        _write_samples(folder, moment, trained, (0,), part, gain)
    evaluations = range(0, steps + 1, 10)
    for step in evaluations:
        _write_samples(folder, f"step-{step}", held_out, (0, 1, 2), step / steps, gain / 2)
    _write_metrics(folder, steps, gain, set(evaluations))
    _write_times(folder, steps)
    write_json(folder / "results.json", {"step": steps, "results": {}})
    return folder


def _write_samples(folder: Path, moment: str, rows: Sequence[int], draws: Sequence[int], part: float, gain: float) -> None:
    scores = []
    for row in rows:
        for draw in draws:
            video = f"{moment}/row-{row}.mp4" if draw == 0 else None
            if video:
                write_video(folder / "samples" / video, moving_face(row))
            score = 0.4 + 0.05 * row - 0.02 * draw + gain * part * (1 if row % 2 == 0 else -0.4)
            frames = [None if frame == 3 and row == 0 else score + 0.02 * (frame % 3) for frame in range(FRAMES)]
            boxes = [None if frame_score is None else box(frame) for frame, frame_score in enumerate(frames)]
            prompt = HOSTILE if row == 0 else f"a person in front of number {row}"
            missing = sum(value is None for value in frames) / FRAMES
            scores.append(SampleScore(row, draw, prompt, video, score, {"face_identity": score}, frames, missing, boxes))
    write_json(folder / "samples" / f"{moment}.json", [asdict(score) for score in scores])


def _write_metrics(folder: Path, steps: int, gain: float, evaluations: set[int]) -> None:
    def held_out(step: int) -> dict[str, float]:
        scores = json.loads((folder / "samples" / f"step-{step}.json").read_text(encoding="utf-8"))
        return {"held_out_reward": sum(score["score"] for score in scores) / len(scores), "held_out_no_face_fraction": 0.0}

    content: list[dict[str, float]] = [{"step": 0, **held_out(0)}]
    for step in range(1, steps + 1):
        part = step / steps
        wobble = 0.02 * (step % 5 - 2)
        line = {
            "step": step,
            "reward": 0.45 + gain * part + wobble,
            "loss": -part + wobble,
            "kl": 0.01 * part,
            "no_face_fraction": 0.05,
        }
        line |= {"grad_norm": 0.8 + wobble, "seconds_per_step": 6.0 - part, "learning_rate": 1e-4, "peak_memory_gb": 61.5}
        line |= {"seconds_sample": 1.5, "seconds_backward": 3.0, "seconds_prepare": 0.1, "bad_steps": 0}
        if step in evaluations:
            line |= held_out(step)
        content.append(line)
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")


def _write_times(folder: Path, steps: int) -> None:
    def session(begin: float, seconds: dict[str, float], step: int, first: int = 0) -> Session:
        started = START + timedelta(seconds=begin)
        return Session(
            started=started,
            written=started + timedelta(seconds=sum(seconds.values())),
            first_step=first,
            step=step,
            processes=8,
            device="NVIDIA H100",
            seconds=seconds,
            ended=first > 0,
        )

    first = session(0, {"staging": 300, "preparing": 200, "evaluating": 100, "training": 1000, "saving": 20}, steps // 2)
    second = session(
        2000, {"staging": 30, "preparing": 100, "evaluating": 100, "training": 1400, "saving": 30}, steps, steps // 2
    )
    write_json(folder / RUN_FILE, History(total_steps=steps, sessions=[first, second]).to_trainer())
