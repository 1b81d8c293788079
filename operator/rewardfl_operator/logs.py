"""The operator's log: plain lines for people, or one JSON object a line for a log collector.

Every line of a job's turn carries the job, whoever wrote it: kopf and aiohttp run in the same context.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

TEXT_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
NOISY = ("kopf", "aiohttp", "asyncio")

_job: ContextVar[dict[str, str]] = ContextVar("job", default={})  # noqa: B039 - it is never changed, only replaced


@contextmanager
def about(namespace: str, job: str) -> Iterator[None]:
    """Add the job to every line that is logged within."""
    token = _job.set({"namespace": namespace, "job": job})
    try:
        yield
    finally:
        _job.reset(token)


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_job_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(form: str, level: str) -> None:
    """Set up logging to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.getLevelName(level), logging.WARNING))


def _job_of(record: logging.LogRecord) -> dict[str, str]:
    """Return the job that a line is about: the one whose turn it is, or the one that kopf says."""
    reference: dict[str, Any] | None = getattr(record, "k8s_ref", None)
    if reference is None:
        return _job.get()
    return {"namespace": str(reference.get("namespace") or ""), "job": str(reference.get("name") or "")}
