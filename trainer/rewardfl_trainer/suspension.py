"""What a run does whose guard asks to be suspended: it has saved, says so, and waits to be stopped.

The operator reads of it and sets runPolicy.suspend; the Job controller then stops the pods by SIGTERM, as it always does. Until
then nothing is trained. Must not write to the cluster but through the progress report.
"""

import logging
import time

from rewardfl_api.progress import Results

from .progress import Reporter
from .run import Run
from .stopping import StopRequest

POLL_SECONDS = 0.5

UPLOAD_PATIENCE_SECONDS = 900.0
"""How long the checkpoint may take to arrive in `output` before the operator is told all the same."""

PATIENCE_SECONDS = 600.0
"""How long it waits to be suspended, from the moment that it has said so. GPUs that wait cost as much as those that train."""

logger = logging.getLogger(__name__)


def wait_for_suspension(run: Run, stop: StopRequest, reporter: Reporter) -> bool:
    """Wait until this run is stopped, and return whether it is; False: nobody did, and it should end. A collective call.

    Outside a cluster there is nobody who would: it ends by itself as if it were stopped.
    """
    uploads, trip = run.saver.uploads, run.watcher.trip
    began, told_at = time.monotonic(), None
    while True:
        now = time.monotonic()
        arrived = trip is not None and uploads.uploaded is not None and uploads.uploaded.step >= trip.step
        if run.process.is_main and told_at is None and (arrived or now - began > UPLOAD_PATIENCE_SECONDS):
            text = "The guard asks for this job to be suspended; a checkpoint is saved."
            reporter.update(guard=trip, message=text, checkpoint=uploads.uploaded, results=best_of(run))
            told_at = now
        stopped, is_over = stop.agreed_with(told_at is not None and now - told_at > PATIENCE_SECONDS)
        if stopped or run.config.progress is None:
            return True
        if is_over:
            logger.warning("nobody has suspended this job within %.0f s; it ends here", PATIENCE_SECONDS)
            return False
        time.sleep(POLL_SECONDS)


def best_of(run: Run) -> Results | None:
    """Return the best checkpoint, as results are told; None where none is on record."""
    best = run.saver.uploads.best
    return None if best is None else Results(best_checkpoint=best)
