"""Stages what a configuration names: the steps, in order. Everything that a step does is in the module of its name."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.uris import Scheme
from rewardfl_trainer.progress import SERVICE_ACCOUNT_DIR, Reporter
from rewardfl_trainer.s3 import Patience, make_client
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.fetch import Fetcher, check_disk
from rewardfl_trainer.staging.meter import Meter
from rewardfl_trainer.staging.plan import Plan
from rewardfl_trainer.staging.remote import Remote
from rewardfl_trainer.staging.s3 import S3Remote
from rewardfl_trainer.staging.sources import Request, folder_requests, model_list_request, model_requests
from rewardfl_trainer.staging.staged import read_model_list, write_staged

POD_INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
"""Set by the Job controller in the pods of an Indexed Job."""

REPORT_INTERVAL_SECONDS = 2.0
LOG_INTERVAL_SECONDS = 10.0

logger = logging.getLogger(__name__)


def stage(
    config: TrainerConfig, reporter: Reporter | None = None, meter: Meter | None = None, *, local_paths_exist: bool = True
) -> dict[str, str]:
    """Fetch every remote source of `config` into its cache folder, and write staged.json to its work folder.

    Args:
        config: what to stage.
        reporter: is told of the bytes. None: one of this pod's own, where this is the pod that reports.
        meter: counts them. None: a new one.
        local_paths_exist: whether paths in the configuration are those of this machine, so that one that is missing is an error.

    Returns:
        The local path of each remote source; for a model, its files, comma separated.

    Raises:
        RewardFLError: whatever is wrong, naming parameter, value and remedy.
    """
    reporter, meter = reporter or pod_reporter(config), meter or Meter()
    with reporter, closing(Remotes(config)) as remotes:
        reporter.update(phase="Staging", message="looking at what has to be staged")
        cache = Cache(Path(config.cache_dir))
        listing = Plan(cache)
        listed = model_list_request(config)
        text = None
        if listed is not None:
            _add(listing, [listed], remotes, local_paths_exist=local_paths_exist)
            _carry_out(listing, cache, reporter, meter)
            text = read_model_list(Path(listing.local.get(listed.text, listed.source.path)), listed)
        models = [request for model in model_requests(config, text) for request in model]
        plan = Plan(cache)
        _add(plan, [*folder_requests(config), *models], remotes, local_paths_exist=local_paths_exist)
        _carry_out(plan, cache, reporter, meter)
        local = {**listing.local, **plan.local}
        write_staged(config, local)
        reporter.update(phase="Staging", message="staged")
    return local


def pod_reporter(config: TrainerConfig, service_account_dir: Path = SERVICE_ACCOUNT_DIR) -> Reporter:
    """Return the reporter of this pod: only the first one of a job reports."""
    first = os.environ.get(POD_INDEX_VARIABLE, "0") == "0"
    target = config.progress if first else None
    return Reporter(target, min_interval_seconds=REPORT_INTERVAL_SECONDS, service_account_dir=service_account_dir)


class Remotes:
    """The storages that a configuration needs, each connected on first use."""

    def __init__(self, config: TrainerConfig) -> None:
        self._storage = config.storage
        self._made: dict[Scheme, Remote] = {}

    def of(self, request: Request) -> Remote:
        """Return the storage that holds the request's source."""
        scheme = request.source.scheme
        if scheme not in self._made:
            self._made[scheme] = self._make(scheme, request)
        return self._made[scheme]

    def close(self) -> None:
        """Close all connections."""
        for remote in self._made.values():
            remote.close()

    def _make(self, scheme: Scheme, request: Request) -> Remote:
        # the hub clients take half a second to import, and most jobs need none
        if scheme == "hf":
            from rewardfl_trainer.staging.huggingface import HuggingFaceRemote  # noqa: PLC0415

            return HuggingFaceRemote()
        if scheme == "ms":
            from rewardfl_trainer.staging.modelscope import ModelScopeRemote  # noqa: PLC0415

            return ModelScopeRemote()
        return S3Remote(make_client(self._storage, request.parameter))


def _add(plan: Plan, requests: Iterable[Request], remotes: Remotes, *, local_paths_exist: bool) -> None:
    for request in requests:
        if request.source.is_remote:
            plan.add(request, remotes.of(request))
        elif local_paths_exist:
            plan.add_local(request)


def _carry_out(plan: Plan, cache: Cache, reporter: Reporter, meter: Meter) -> None:
    """Fetch the files of a plan and report how far it is."""
    if not plan.files:
        return
    check_disk(plan, cache)
    files = list(plan.files.values())
    for planned in files:
        meter.expect(planned.place, planned.file.key, planned.file.size)

    def report() -> None:
        reporter.update(phase="Staging", staging=meter.snapshot(), message=meter.line())

    with _every(REPORT_INTERVAL_SECONDS, report), _every(LOG_INTERVAL_SECONDS, lambda: logger.info("%s", meter.line())):
        Fetcher(cache, meter, Patience.from_environment().attempts).fetch(files)
    report()
    logger.info("%s", meter.line())


@contextmanager
def _every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` at an interval, in a thread, while the block runs."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(seconds):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
