"""The operator's entry: kopf watches RewardFLJobs and hands what it sees to the controller, which does the rest.

Only a low-level event handler is registered: it writes no annotations and needs no finalizer, so nothing of a job hangs when the
operator is gone.
"""

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from rewardfl_api import __version__
from rewardfl_api.job import GROUP, PLURAL, VERSION

from . import health, logs
from .cluster import NOT_FOUND, REWARDFLJOBS, ApiError, Cluster, ConfigException
from .controller import Controller
from .leader import Leadership, LeadershipLost
from .metrics import Metrics
from .settings import OperatorSettings

CRD_POLL_SECONDS = 2.0
NO_CRD = "the API server does not know RewardFLJobs yet; install the CRD (the chart does, with crds.enabled)"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
KOPF_WORKERS, KOPF_IDLE_SECONDS = 100, 0.05
"""kopf keeps a worker for each object, for a while after its last event. With its own 5 s, 100 workers would hand on no more than
20 objects a second: a thousand jobs would be heard of only after 50 s, at every start."""

EXIT_SECONDS = 20.0
"""Time after SIGTERM at which kopf ends the process whatever still runs."""

logger = logging.getLogger("rewardfl_operator")


def main() -> None:
    """Run the operator until SIGTERM."""
    parser = argparse.ArgumentParser(prog="rewardfl-operator", description="Kubernetes operator of RewardFLJob.")
    parser.add_argument("--settings", type=Path, default=os.environ.get("REWARDFL_SETTINGS"), help="settings file (YAML)")
    parser.add_argument("--kubeconfig", default=os.environ.get("KUBECONFIG"), help="default: the pod's service account")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    try:
        settings = OperatorSettings.load(arguments.settings)
    except (OSError, ValueError) as error:
        sys.exit(f"rewardfl-operator: {arguments.settings}: {error}")
    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(run(settings, arguments.kubeconfig or None))
    except (LeadershipLost, ConfigException, ValueError) as error:
        logger.error("%s", error)
        sys.exit(1)


async def run(settings: OperatorSettings, kubeconfig: str | None = None) -> None:
    """Run the operator until a signal ends it, or one of its parts fails.

    Raises:
        LeadershipLost: another replica leads, or may do so soon. The process has to end.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        cluster = await Cluster.connect(kubeconfig, metrics)
        stack.push_async_callback(cluster.close)
        controller = Controller(cluster, settings)
        metrics.observe(controller)
        leadership = await _candidate(stack, settings, kubeconfig, cluster)
        checks = (controller.trouble, lambda: _readiness(controller, leadership))
        runner, port = await health.serve(settings.health_port, *checks, metrics.registry)
        stack.push_async_callback(runner.cleanup)
        logger.info("rewardfl-operator %s, health on port %d", __version__, port)
        ended = asyncio.Event()
        _on_signals(ended.set)
        await first_to_end(_wait(ended), operate(controller, cluster, settings, leadership, ended))


async def operate(
    controller: Controller, cluster: Cluster, settings: OperatorSettings, leadership: Leadership | None, ended: asyncio.Event
) -> None:
    """Wait for this replica's turn to lead, and lead."""
    await wait_for_crd(cluster, settings)
    parts = partial(controller.run), partial(watch, controller, cluster, settings, ended)
    if leadership is None:
        cluster.metrics.leader.set(1)
        return await first_to_end(*(part() for part in parts))
    cluster.metrics.leader.set_function(lambda: float(leadership.is_held()))
    try:
        await leadership.acquire()
        await first_to_end(leadership.hold(), *(part() for part in parts))
    finally:
        await leadership.release()


async def watch(controller: Controller, cluster: Cluster, settings: OperatorSettings, ended: asyncio.Event) -> None:
    """Run kopf. It takes the signals over when it starts; they are taken back.

    A kopf that ends by itself waits for every task that is younger than it is, and raises whatever they raise; one that is
    cancelled does neither.
    """
    await controller.started.wait()
    ready = asyncio.Event()
    kopfs = kopf.operator(
        registry=registry_of(controller, cluster),
        settings=kopf_settings(settings),
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        standalone=True,
        ready_flag=ready,
    )

    async def take_signals_back() -> None:
        await ready.wait()
        _on_signals(ended.set)
        await asyncio.Event().wait()

    await first_to_end(take_signals_back(), kopfs)


def registry_of(controller: Controller, cluster: Cluster) -> kopf.OperatorRegistry:
    """Return kopf's handlers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(cluster)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        controller.seen(event["type"], dict(event["object"]))

    return registry


class EndlessBackOff:
    """Seconds between the attempts of a request, for as long as it takes: kopf gives up, and ends, when they run out."""

    def __iter__(self) -> Iterator[float]:
        pause = FIRST_PAUSE_SECONDS
        while True:
            yield pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def kopf_settings(own: OperatorSettings) -> kopf.OperatorSettings:
    """Return kopf's settings. Watches that stall are given up; kopf stores nothing in the objects and posts no events."""
    settings = kopf.OperatorSettings()
    settings.watching.inactivity_timeout = own.watch_silence_seconds
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 5
    settings.watching.chunk_size = 500
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = EndlessBackOff()
    settings.scanning.disabled = True
    settings.queueing.worker_limit = KOPF_WORKERS
    settings.queueing.idle_timeout = KOPF_IDLE_SECONDS
    settings.queueing.exit_timeout = 2
    settings.posting.level = logging.WARNING
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{GROUP}")
    settings.process.ultimate_exiting_timeout = EXIT_SECONDS
    return settings


def connection_info(cluster: Cluster) -> kopf.ConnectionInfo:
    """Return the API server's address and credentials as kopf wants them. Tokens are read anew each time."""
    configuration = cluster.configuration
    if configuration.refresh_api_key_hook is not None:
        configuration.refresh_api_key_hook(configuration)
    scheme, _, token = (configuration.api_key.get("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


async def wait_for_crd(cluster: Cluster, settings: OperatorSettings) -> None:
    """Wait until the API server knows RewardFLJobs: the chart may install the definition, or the role, at this very moment.

    An API server that is down is waited for as well: to end would only bring longer and longer pauses between restarts.
    """
    namespace = settings.watch_namespaces[0] if settings.watch_namespaces else None
    told = ""
    while True:
        try:
            async for _ in cluster.list_pages(REWARDFLJOBS, namespace):
                return
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            missing = isinstance(error, ApiError) and error.status == NOT_FOUND
            trouble = NO_CRD if missing else f"RewardFLJobs cannot be listed: {error or type(error).__name__}; trying again"
        if trouble != told:
            logger.warning(trouble)
            told = trouble
        await asyncio.sleep(CRD_POLL_SECONDS)


async def _candidate(
    stack: AsyncExitStack, settings: OperatorSettings, kubeconfig: str | None, cluster: Cluster
) -> Leadership | None:
    """Return this replica's part in the election, upon which all writes of `cluster` depend; None without election."""
    if not settings.leader_election.enabled:
        return None
    connection = await Cluster.connect(kubeconfig, cluster.metrics)
    stack.push_async_callback(connection.close)
    leadership = Leadership(connection, settings.leader_election)
    cluster.may_write = leadership.is_held
    return leadership


def _on_signals(end: Callable[[], None]) -> None:
    """Call `end` at SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def first_to_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Run `parts` until the first of them ends, then end the others. Raises what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


def _readiness(controller: Controller, leadership: Leadership | None) -> str | None:
    """A replica that stands by is ready: otherwise no rolling upgrade would ever be complete."""
    if controller.started.is_set() or (leadership is not None and leadership.leader not in ("", leadership.identity)):
        return None
    return "the first listing is not complete"


if __name__ == "__main__":
    main()
