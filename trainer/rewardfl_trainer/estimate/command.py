"""What `rewardfl estimate` does: reads a RewardFLJob or a trainer's configuration and prints what it needs."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.training import TrainingParameters

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
        RewardFLError: the file cannot be read (exit code 66), is not valid, or contradicts the models (78); or a reward that is
            not ours does not run on shapes (1).
    """
    config, world_size = configuration.read(path)
    world_size = gpus or world_size
    with redirect_stdout(sys.stderr):  # libraries write there when they are imported, and programs read the report
        try:
            estimator = Estimator.of(config.training)
            estimate = estimator.estimate(config, world_size, tflops)
            found = fits(estimator, config, world_size)
        except RewardFLError:
            raise
        except Exception as error:  # rewards may be anybody's code: they need not run on shapes
            raise _not_estimated(config.training, error) from error
    return json.dumps(as_json(estimate, found), indent=2) if output == "json" else as_text(estimate, found)


def _not_estimated(parameters: TrainingParameters, error: Exception) -> RewardFLError:
    """Return what is said where something did not run on shapes."""
    own = [spec.name for spec in parameters.reward_specs if ":" in spec.name]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    hint = (
        f"{' and '.join(own)} must run on shapes without data (torch's meta device): estimate without it, and add its own memory."
        if own
        else "This is a fault of the estimate; report it with the file."
    )
    return RewardFLError(Reason.TRAINER_FAILED, f"it cannot be estimated: {what}.", hint, ExitCode.FAILED)
