"""The `rewardfl` command line, also `kubectl rewardfl`. It speaks; what it says comes from elsewhere.

`app.py` holds what all commands share, and how errors are told. `local.py`, `report.py`, `stage.py` and `cache.py` have the
commands that need no cluster, `validate.py` and `submit.py` take manifests, `listing.py`, `describe.py`, `watch.py`, `logs.py`
and `control.py` look at jobs and steer them, `download.py` fetches their results.
What they need is imported when they run, so that help is instant.
"""

from . import cache, control, describe, download, listing, local, logs, report, stage, submit, validate, watch
from .app import app

__all__ = [
    "app",
    "cache",
    "control",
    "describe",
    "download",
    "listing",
    "local",
    "logs",
    "main",
    "report",
    "stage",
    "submit",
    "validate",
    "watch",
]


def main() -> None:
    """Run the command line."""
    app()
