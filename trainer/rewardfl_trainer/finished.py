"""The last file of a run, `results.json` in `output`: says that everything else is there, so that a restarted pod just ends."""

import json
import tempfile
from pathlib import Path

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_api.progress import Results

from .disk import write_json
from .storage import Storage, join

RESULTS_FILE = "results.json"


def save_finished_results(storage: Storage, folder: Path, output: str, step: int, results: Results) -> None:
    """Write and upload the file, after all that it names.

    Raises:
        RewardFLError: it could not be uploaded.
    """
    write_json(folder / RESULTS_FILE, {"step": step, "results": results.to_trainer()})
    storage.upload_file(folder / RESULTS_FILE, join(output, RESULTS_FILE))


def finished_results(storage: Storage, output: str, step: int) -> Results | None:
    """Return the results of a run that has ended after `step` steps; None when it has not.

    Raises:
        RewardFLError: the storage cannot be read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = storage.download_file(join(output, RESULTS_FILE), Path(scratch) / RESULTS_FILE)
        except RewardFLError as error:
            if error.reason is Reason.OBJECT_NOT_FOUND:
                return None
            raise
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Results.model_validate(content["results"]) if content["step"] == step else None
        except (ValueError, KeyError, TypeError):
            return None
