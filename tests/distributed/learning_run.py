"""A run of the learning test: trains, and writes down the mean score on fixed noise before and after."""

import json
from pathlib import Path

from rewardfl_trainer import configuration, environment
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.samples import mean_score
from rewardfl_trainer.train import train_batch


def main(config_path: Path, result: Path) -> None:
    config = configuration.load(str(config_path))
    environment.prepare(config)
    before, after = learn(assemble(config, environment.join_process_group(config)))
    result.write_text(json.dumps({"before": before, "after": after}), encoding="utf-8")


def learn(run: Run) -> tuple[float, float]:
    """Train; return the mean score of the evaluation before and after."""
    before = evaluate(run, "before")
    for batch in run.order.batches():
        _, report = train_batch(run, batch)
        assert report.applied
    return before, evaluate(run, "after")


def evaluate(run: Run, moment: str) -> float:
    return mean_score(run.sampler.generate(run.sample_positions, moment))  # type: ignore[arg-type]
