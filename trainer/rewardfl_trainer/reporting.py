"""Keeps a run's report current while it trains: `report.html`, `run.json` and `config.yaml` in `output`.

All of it is optional: pages are made in a thread of their own, and whatever goes wrong is logged and said in the page's place.
Only the main rank does it. What a page shows and how it is made is `report/`'s, which is imported when a page is made.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from rewardfl_api.progress import Results
from rewardfl_api.trainer_config import CONFIG_KEY, TrainerConfig

from .background import Background
from .disk import write_json
from .files import METRICS_FILE, REPORT_FILE
from .redact import redact
from .run import Run
from .storage import join
from .timeline import RUN_FILE, earlier_sessions

LAST_PAGE_SECONDS = 300.0
"""How long the end of a run waits for its page."""

RETRY_SECONDS = 3600.0
"""A page that fails is not tried again, but made anew at the next checkpoint."""

logger = logging.getLogger(__name__)


class Reporting:
    """The report of a run.

    Args:
        run: whose.
        config: as the user wrote it.
        tell: is told where the results are that a running job has, once its first page is being uploaded.
    """

    def __init__(self, run: Run, config: TrainerConfig, tell: Callable[[Results], None]) -> None:
        self.run, self.config, self.tell = run, config, tell
        self.uri = join(config.output, REPORT_FILE)
        self._enabled = run.process.is_main
        self._pages = Background("report", RETRY_SECONDS)

    def begin(self) -> None:
        """Store what is known before the first step."""
        if not self._enabled:
            return
        start, total = self.run.order.start.step, self.run.order.total_steps
        self.run.timeline.go_on(earlier_sessions(self.run.storage, self.config.output), start, total)
        path = self.run.folder / CONFIG_KEY
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.config.dump(), encoding="utf-8")
        self.run.saver.uploads.submit_file(path, CONFIG_KEY)
        self._store_times(start)

    def checkpoint(self, step: int) -> None:
        """Store where the time went up to a checkpoint, and make the page of it."""
        if self._enabled:
            self._store_times(step)
            self._pages.put("page", self._page)

    def stopped(self, step: int) -> None:
        """Store where the time went of a run that was asked to stop, and has saved. There is no time for a page."""
        if self._enabled:
            self._store_times(step, ended=True)

    def finish(self, step: int) -> str | None:
        """Make and upload the last page, when all other results are there; return where it is, None where it is not."""
        if not self._enabled:
            return None
        try:
            self._write_times(step, ended=True)
            self.run.storage.upload_file(self.run.folder / RUN_FILE, join(self.config.output, RUN_FILE))
            self._pages.finish(LAST_PAGE_SECONDS)
            return self.run.storage.upload_file(self._make(finished=True), self.uri)
        except Exception as error:  # a report must never fail a run
            logger.warning("%s", redact(f"the report is not in {self.config.output}: {type(error).__name__}: {error}"))
            return None

    def _store_times(self, step: int, *, ended: bool = False) -> None:
        """Write run.json and have it uploaded."""
        try:
            self._write_times(step, ended=ended)
        except OSError as error:
            logger.warning("%s cannot be written: %s", RUN_FILE, error)
            return
        self.run.saver.uploads.submit_file(self.run.folder / RUN_FILE, RUN_FILE)

    def _write_times(self, step: int, *, ended: bool) -> None:
        history = self.run.timeline.history(step, ended=ended, guard=self.run.watcher.trip)
        write_json(self.run.folder / RUN_FILE, history.to_trainer())

    def _page(self) -> bool:
        """Make the page, upload it and say where it is, in the background."""
        try:
            self.run.storage.upload_file(self._make(), self.uri)
            self.tell(Results(report=self.uri, metrics=join(self.config.output, METRICS_FILE)))
        except Exception as error:  # a report must never stop training
            logger.warning("%s", redact(f"the report is not uploaded: {type(error).__name__}: {error}"))
        return True

    def _make(self, *, finished: bool = False) -> Path:
        """Write the page, or one that says why there is none, and return its place."""
        path, name = self.run.folder / REPORT_FILE, self.config.name
        try:
            from .report.make import page_of_run  # noqa: PLC0415 - takes a second, and only here

            text = page_of_run(self.run.storage, self.config, self.run.folder, finished=finished)
        except Exception as error:  # said in the page's place
            logger.warning("%s", redact(f"the report cannot be made, training goes on: {type(error).__name__}: {error}"))
            text = unmade(name, redact(f"{type(error).__name__}: {error}"))
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        return partial.replace(path)


def unmade(name: str, why: str) -> str:
    """Return the page that stands where the report would."""
    from html import escape  # noqa: PLC0415 - only here

    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}</title><h1>{escape(name)}</h1><p>The report could not be made at "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Training is not affected, and "
        f"<code>rewardfl report</code> makes it from what is stored.</p><pre>{escape(why)}</pre></html>\n"
    )


def device_name(device: torch.device) -> str:
    """Return what people call a rank's device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
