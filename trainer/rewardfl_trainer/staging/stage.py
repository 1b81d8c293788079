"""Stages what a configuration names: the steps, in order. Everything that a step does is in the module of its name."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import botocore.session

from rewardfl_api.quantities import bytes_of
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.uris import Scheme
from rewardfl_trainer.progress import SERVICE_ACCOUNT_DIR, Reporter
from rewardfl_trainer.s3 import Patience, make_client
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.fetch import Fetcher
from rewardfl_trainer.staging.leases import Lease, beating, hand_over
from rewardfl_trainer.staging.meter import Meter
from rewardfl_trainer.staging.order import needed_first
from rewardfl_trainer.staging.plan import Plan, find
from rewardfl_trainer.staging.remote import Remote
from rewardfl_trainer.staging.repeat import every
from rewardfl_trainer.staging.room import Limit, reserve
from rewardfl_trainer.staging.s3 import S3Remote
from rewardfl_trainer.staging.sources import Request, folder_requests, model_list_request, model_requests, option_requests
from rewardfl_trainer.staging.space import check_disk
from rewardfl_trainer.staging.staged import read_model_list, write_staged
from rewardfl_trainer.staging.views import publish

POD_INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
"""Set by the Job controller in the pods of an Indexed Job."""

REPORT_INTERVAL_SECONDS = 2.0
LOG_INTERVAL_SECONDS = 10.0
LISTINGS_AT_ONCE = 16
"""Questions for listings and sizes: a model of twenty files far away is looked at in a few round trips."""


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
        with _leased(cache, config) as lease:
            carry_out = partial(_carry_out, cache=cache, lease=lease, limit=_limit(config), reporter=reporter, meter=meter)
            look = partial(_look, remotes=remotes, local_paths_exist=local_paths_exist)
            listed, local, text = model_list_request(config), dict[str, str](), None
            if listed is not None:
                local = carry_out(look([listed]))
                text = read_model_list(Path(local.get(listed.text, listed.source.path)), listed)
            models = [request for model in model_requests(config, text) for request in model]
            local |= carry_out(look([*folder_requests(config), *option_requests(config), *models]))
            hand_over(lease, Path(config.work_dir))
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
        session = botocore.session.get_session()
        return S3Remote(make_client(self._storage, request.parameter, session=session), session)


@contextmanager
def _leased(cache: Cache, config: TrainerConfig) -> Iterator[Lease]:
    """Keep what is staged in the block from being removed, also afterwards, until the trainer has ended; not when it fails."""
    namespace = config.progress.namespace if config.progress is not None else "-"
    cache.lease = lease = Lease.new(cache.own, f"{namespace}/{config.name} on {socket.gethostname()}")
    try:
        with beating(lease):
            yield lease
    except BaseException:
        lease.release()
        raise


def _limit(config: TrainerConfig) -> Limit | None:
    """Return how large the cache may become."""
    return None if config.cache_max_size is None else Limit(config.cache_max_size, bytes_of(config.cache_max_size))


def _look(requests: Sequence[Request], remotes: Remotes, *, local_paths_exist: bool) -> Plan:
    """Return what the requests need. Their storages are asked several things at once; errors come in the requests' order."""
    plan, pool = Plan(), ThreadPoolExecutor(LISTINGS_AT_ONCE, thread_name_prefix="list")
    try:
        remote = {request: remotes.of(request) for request in requests if request.source.is_remote}
        found = {request: pool.submit(find, request, storage) for request, storage in remote.items()}
        for request in requests:
            if request in remote:
                plan.add(request, remote[request], *found[request].result())
            elif local_paths_exist:
                plan.add_local(request)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    plan.files = {planned.place: planned for planned in needed_first(plan.files.values())}
    return plan


def _carry_out(plan: Plan, cache: Cache, lease: Lease, limit: Limit | None, reporter: Reporter, meter: Meter) -> dict[str, str]:
    """Fetch what is not there of a plan, report how far it is, and return the local path of each source."""
    if not plan.files:
        return {}
    missing = reserve(cache, lease, {place: planned.file for place, planned in plan.files.items()}, limit)
    for place, planned in plan.files.items():
        file_meter = meter.expect(place, planned.file.key, planned.file.size)
        if place not in missing:
            file_meter.cached()
    if missing:
        _fetch(plan.only(missing), cache, reporter, meter)
    views = {name: publish(cache, {place: cache.used[place] for place in places}) for name, places in plan.views().items()}
    reporter.update(phase="Staging", staging=meter.snapshot(), message=meter.line())
    logger.info("%s", meter.line())
    return {text: source.local(views[source.parameter]) for text, source in plan.sources.items()}


def _fetch(plan: Plan, cache: Cache, reporter: Reporter, meter: Meter) -> None:
    """Fetch the files of a plan and report how far it is."""
    check_disk(plan, cache)

    def report() -> None:
        reporter.update(phase="Staging", staging=meter.snapshot(), message=meter.line())

    with every(REPORT_INTERVAL_SECONDS, report), every(LOG_INTERVAL_SECONDS, lambda: logger.info("%s", meter.line())):
        Fetcher(cache, meter, Patience.from_environment().attempts).fetch(plan.files.values())
