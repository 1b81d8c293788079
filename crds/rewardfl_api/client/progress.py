"""Shows how a job goes on: as a bar at a terminal or in a notebook, as lines elsewhere. Of the client, only this prints."""

import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from .. import staged
from ..printable import one_line

if TYPE_CHECKING:
    from .view import Job

METRICS = ("reward", "loss", "kl", "gradNorm", "secondsPerStep", "noFaceFraction", "heldOutReward")
SHOWN_WHEN_ABOVE_ZERO = ("noFaceFraction",)
BAR = "{desc} {percentage:3.0f}%|{bar}| "

ProgressOption = bool | Callable[["Job"], object]
"""True: a bar or lines. A function: called with the job as it is now, and each time that it has changed."""


class Shown(Protocol):
    """Is told of every change."""

    def __call__(self, job: "Job") -> None:
        """Show the job as it is now."""

    def close(self) -> None:
        """No more is to come."""


def shown(progress: ProgressOption) -> Shown:
    """Return what shows a job's progress."""
    if callable(progress):
        return _Told(progress)
    if not progress:
        return _Told(lambda job: None)
    bar = _bar() if sys.stderr.isatty() or _in_notebook() else None
    return _Lines() if bar is None else _Bar(bar)


def line(job: "Job") -> str:
    """Return what there is to say of a job in one line."""
    status = job.status
    parts = [job.phase or "new"]
    if job.phase == "Staging" and status.staging is not None:
        parts.append(staged.summary(status.staging))
    elif status.progress and job.phase not in ("Pending", "Queued"):
        parts.append(f"step {status.progress} ({status.percent or 0}%)")
        parts += [f"{name} {value:.4g}" for name, value in metrics(job)]
    if status.eta and job.phase != "Staging":
        parts.append(f"eta {status.eta}")
    if status.restarts:
        parts.append(f"restarts {status.restarts}")
    expected = job.reason in (job.phase, "Completed")
    if not expected and job.reason:
        parts.append(f"{job.reason}: {job.message}" if job.message else job.reason)
    return "  ".join(" ".join(one_line(part).split()) for part in parts)


def metrics(job: "Job") -> list[tuple[str, float]]:
    """Return the latest metrics that are worth showing, by name."""
    latest = job.status.metrics
    found = latest.to_kubernetes() if latest is not None else {}
    return [(name, found[name]) for name in METRICS if name in found and (found[name] or name not in SHOWN_WHEN_ABOVE_ZERO)]


class _Told:
    """Hands every change on."""

    def __init__(self, tell: Callable[["Job"], object]) -> None:
        self._tell = tell

    def __call__(self, job: "Job") -> None:
        self._tell(job)

    def close(self) -> None:
        """Nothing is to be cleared away."""


class _Lines:
    """Writes a line whenever there is something new in it."""

    def __init__(self) -> None:
        self._before = ""

    def __call__(self, job: "Job") -> None:
        text = line(job)
        if text != self._before:
            print(f"{datetime.now():%H:%M:%S} {text}", flush=True)
        self._before = text

    def close(self) -> None:
        """Every line is complete."""


class _Bar:
    """Draws a bar of the steps; of the bytes, while they are staged."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, job: "Job") -> None:
        said = line(job).removeprefix(job.phase or "new").strip()
        self._bar.bar_format = BAR + said.replace("{", "{{").replace("}", "}}")
        self._bar.set_description_str(f"{job.name} {job.phase or 'new'}", refresh=False)
        self._bar.n = 100 if job.phase == "Succeeded" else job.status.percent or 0
        self._bar.refresh()

    def close(self) -> None:
        """Leave the last picture."""
        self._bar.close()


def _bar() -> Any | None:
    """Return tqdm's bar; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets it draws with characters, which is no reason to complain
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=100, bar_format=BAR, dynamic_ncols=True)


def _in_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
