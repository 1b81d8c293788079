"""What `rewardfl estimate` does: reads a RewardFLJob or a trainer's configuration and prints what it needs."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from .. import configuration
from .fit import fits
from .report import as_json, as_text
from .result import DEFAULT_TFLOPS, Estimator


def run(path: Path, output: str, gpus: int | None, tflops: float = DEFAULT_TFLOPS) -> str:
    """Return the report.

    Args:
        path: a RewardFLJob manifest or the trainer's configuration.
        output: `json`, or anything else for text.
        gpus: processes in all. None: as the job says; 1 for a trainer's configuration.
        tflops: what a GPU really computes in a second.

    Raises:
        RewardFLError: the file cannot be read (exit code 66), is not valid, or contradicts the models (78).
    """
    config, world_size = configuration.read(path)
    world_size = gpus or world_size
    with redirect_stdout(sys.stderr):  # libraries write there when they are imported, and programs read the report
        estimator = Estimator.of(config.training)
        estimate = estimator.estimate(config, world_size, tflops)
        found = fits(estimator, config, world_size)
    return json.dumps(as_json(estimate, found), indent=2) if output == "json" else as_text(estimate, found)
