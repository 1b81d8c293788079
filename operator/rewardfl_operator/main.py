"""The operator's entry: kopf watches RewardFLJobs and hands what it sees to the controller, which does the rest.

Only a low-level event handler is registered: it writes no annotations and needs no finalizer, so nothing of a job hangs when the
operator is gone.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import kopf

from rewardfl_api import __version__
from rewardfl_api.job import GROUP, PLURAL, VERSION

from . import health, logs
from .cluster import NOT_FOUND, REWARDFLJOBS, ApiError, Cluster
from .controller import Controller
from .metrics import Metrics
from .settings import OperatorSettings

CRD_POLL_SECONDS = 2.0
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
    asyncio.run(run(settings, arguments.kubeconfig or None))


async def run(settings: OperatorSettings, kubeconfig: str | None = None) -> None:
    """Run the operator until a signal ends it, or one of its parts fails."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        cluster = await Cluster.connect(kubeconfig, metrics)
        stack.push_async_callback(cluster.close)
        controller = Controller(cluster, settings)
        metrics.observe(controller)
        checks = (controller.trouble, lambda: _readiness(controller))
        runner, port = await health.serve(settings.health_port, *checks, metrics.registry)
        stack.push_async_callback(runner.cleanup)
        logger.info("rewardfl-operator %s, health on port %d", __version__, port)
        await wait_for_crd(cluster, settings)
        await first_to_end(controller.run(), watch(controller, cluster, settings))


async def watch(controller: Controller, cluster: Cluster, settings: OperatorSettings) -> None:
    """Run kopf until a signal ends it. Once it ends, it waits for every task that is younger than itself."""
    await controller.started.wait()
    await kopf.operator(
        registry=registry_of(controller, cluster),
        settings=kopf_settings(),
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        standalone=True,
    )


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


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings. Watches that stall are given up; kopf stores nothing in the objects and posts no events."""
    settings = kopf.OperatorSettings()
    settings.watching.inactivity_timeout = 70
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 5
    settings.watching.chunk_size = 500
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.scanning.disabled = True
    settings.queueing.worker_limit = 100
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
    """Wait until the API server knows RewardFLJobs: the chart may install the definition at this very moment."""
    namespace = settings.watch_namespaces[0] if settings.watch_namespaces else None
    told = False
    while True:
        try:
            async for _ in cluster.list_pages(REWARDFLJOBS, namespace):
                return
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
        if not told:
            logger.warning("the API server does not know RewardFLJobs yet; install the CRD (the chart does, with crds.enabled)")
            told = True
        await asyncio.sleep(CRD_POLL_SECONDS)


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


def _readiness(controller: Controller) -> str | None:
    return None if controller.started.is_set() else "the first listing is not complete"


if __name__ == "__main__":
    main()
