"""Tells the operator how far the run is, through the job's progress ConfigMap. It must never stop or delay training.

A background thread sends the latest document, at most every few seconds and at once when the phase changes. Whatever goes
wrong there is logged once. Without a target, or outside a cluster, the same documents go to the log alone.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from rewardfl_api.guard import GuardTrip
from rewardfl_api.progress import (
    PROGRESS_MAX_BYTES,
    Checkpoint,
    Metrics,
    Progress,
    ProgressPhase,
    Results,
    StagingProgress,
)
from rewardfl_api.trainer_config import ProgressTarget
from rewardfl_trainer.redact import redact

if TYPE_CHECKING:
    from rewardfl_trainer.progress_config_map import ProgressConfigMap

MIN_INTERVAL_SECONDS = 3.0
CLOSE_TIMEOUT_SECONDS = 10.0
SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KEPT_FROM_BEFORE = ("staging", "checkpoint")
"""What a container carries over from the document that the one before it left."""

URGENT = ("phase", "guard")
"""What is sent at once when it changes."""

MESSAGE_MAX_CHARACTERS = 1024

logger = logging.getLogger(__name__)


class Reporter:
    """Merges updates into one progress document and sends it in the background.

    Args:
        target: the ConfigMap to patch. None: only log.
        clock: seconds, monotonic.
        min_interval_seconds: least time between two patches, except when the phase changes and at the end.
        service_account_dir: folder with `token` and `ca.crt`. Where it is missing this is no pod, and nothing is sent.
    """

    def __init__(
        self,
        target: ProgressTarget | None,
        clock: Callable[[], float] = time.monotonic,
        min_interval_seconds: float = MIN_INTERVAL_SECONDS,
        service_account_dir: Path = SERVICE_ACCOUNT_DIR,
    ) -> None:
        self._clock = clock
        self._min_interval_seconds = min_interval_seconds
        self._service_account_dir = service_account_dir
        self._target = target if (service_account_dir / "token").is_file() else None
        self._fields: dict[str, Any] = {}
        self._wake = threading.Condition()
        self._pending = self._urgent = self._closing = False
        self._earliest = -math.inf
        self._complaints: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        if self._target is not None:
            self._thread.start()

    def update(  # noqa: PLR0913 - one keyword for each field of the document
        self,
        *,
        phase: ProgressPhase | None = None,
        step: int | None = None,
        total_steps: int | None = None,
        epoch: int | None = None,
        eta_seconds: float | None = None,
        metrics: Metrics | Mapping[str, float | None] | None = None,
        staging: StagingProgress | None = None,
        checkpoint: Checkpoint | None = None,
        results: Results | None = None,
        guard: GuardTrip | None = None,
        message: str | None = None,
    ) -> None:
        """Merge what is given into the document and send it soon. Never raises and never waits for the network.

        Fields that are left out keep their last value, except `message` and `eta_seconds`, which belong to one moment. The
        same holds for each part of `results`. A metric that is not finite is left out.
        """
        given = {
            "phase": phase, "step": step, "total_steps": total_steps, "epoch": epoch, "staging": staging,
            "checkpoint": checkpoint, "results": results, "guard": guard,
            "metrics": None if metrics is None else _finite(metrics),
        }  # fmt: skip
        momentary = {
            "message": redact(message or "")[:MESSAGE_MAX_CHARACTERS],
            "eta_seconds": eta_seconds if eta_seconds is not None and math.isfinite(eta_seconds) else None,
        }
        with self._wake:
            if results is not None and isinstance(earlier := self._fields.get("results"), Results):
                given["results"] = earlier.model_copy(update=_told(results))
            fields = {**self._fields, **{name: value for name, value in given.items() if value is not None}, **momentary}
            try:
                document = _document(fields)
            except ValidationError as error:
                detail = error.errors(include_url=False)[0]
                self._complain(f"progress is not reported: {detail['loc']}: {detail['msg']}")
                return
            self._urgent = self._urgent or any(fields.get(name) != self._fields.get(name) for name in URGENT)
            self._fields = fields
            self._pending = True
            self._wake.notify()
        logger.debug("progress: %s", document.to_kubernetes())

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Send what is pending, waiting no longer than `timeout_seconds`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def text(self) -> str:
        """Return the document as it is now, within the size that the operator reads."""
        with self._wake:
            fields = dict(self._fields)
        text = _json(fields)
        if len(text.encode()) > PROGRESS_MAX_BYTES and isinstance(staging := fields.get("staging"), StagingProgress):
            fields["staging"] = staging.model_copy(update={"files": []})
            text = _json(fields)
        if len(text.encode()) > PROGRESS_MAX_BYTES:
            text = _json(fields | {"message": "", "results": None})
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        """Send the document whenever it is new and its time has come."""
        config_map: ProgressConfigMap | None = None
        while self._wait_until_due():
            try:
                if config_map is None:
                    config_map = self._connect()
                    self._carry_over(config_map.read())
                config_map.write(self.text())
            except Exception as error:  # a report that fails must never stop training
                self._complain(redact(f"progress cannot be reported, training goes on: {type(error).__name__}: {error}"))
                with self._wake:
                    self._pending = self._pending or not self._closing

    def _wait_until_due(self) -> bool:
        """Wait until the document is to be sent; False when closing and nothing is left to send."""
        with self._wake:
            while not self._pending or not (self._urgent or self._closing or self._clock() >= self._earliest):
                if self._closing and not self._pending:
                    return False
                self._wake.wait(max(0.0, self._earliest - self._clock()) if self._pending else None)
            self._pending = self._urgent = False
            self._earliest = self._clock() + self._min_interval_seconds
            return True

    def _connect(self) -> "ProgressConfigMap":
        """Return the ConfigMap, reached with the pod's own service account."""
        from rewardfl_trainer.progress_config_map import ProgressConfigMap  # noqa: PLC0415 - slow, and only a pod needs it

        if self._target is None:
            raise ValueError("no ConfigMap to report to")
        return ProgressConfigMap(self._target, self._service_account_dir)

    def _carry_over(self, text: str) -> None:
        """Take from the document of the container before this one what this one does not know."""
        try:
            earlier = Progress.model_validate_json(text)
        except ValueError:
            return
        with self._wake:
            for name in KEPT_FROM_BEFORE:
                if name not in self._fields and getattr(earlier, name) is not None:
                    self._fields[name] = getattr(earlier, name)
            if isinstance(staging := self._fields.get("staging"), StagingProgress) and self._fields["phase"] != "Staging":
                self._fields["staging"] = staging.model_copy(update={"files": []})

    def _complain(self, text: str) -> None:
        """Log a warning, each kind of it once."""
        kind = text[:60]
        if kind not in self._complaints:
            self._complaints.add(kind)
            logger.warning("%s", text)


def _told(results: Results) -> dict[str, Any]:
    """Return the parts of the results that say something."""
    return {name: value for name, value in results if value is not None}


def _document(fields: Mapping[str, Any]) -> Progress:
    return Progress(time=datetime.now(UTC), **fields)


def _json(fields: Mapping[str, Any]) -> str:
    return _document(fields).model_dump_json(by_alias=True, exclude_none=True)


def _finite(metrics: Metrics | Mapping[str, float | None]) -> dict[str, float]:
    """Return the metrics that are numbers; a NaN in one must not hide the others."""
    values = metrics.model_dump(by_alias=False) if isinstance(metrics, Metrics) else metrics
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
