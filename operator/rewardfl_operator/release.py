"""What the chart runs before it is uninstalled (its pre-delete hook): the Jobs of gangs are let go, so that no namespace hangs.

It runs beside the operator, under the same service account, and ends: an upgrade does not run it. What is to be done about a
Job stands in leaving.py; this only looks, waits and writes.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp

from . import leaving, logs
from .cluster import CONFLICT, ERRORS, FORBIDDEN, JOBS, NOT_FOUND, PODS, ApiError, Cluster, ConfigException
from .informer import Key
from .names import CHILD_SELECTOR
from .observed import owner_uid
from .settings import OperatorSettings

Raw = dict[str, Any]

PATIENCE_SECONDS = 60.0
"""For gangs that are about to start again: the Job controller's first pause is 10 s, and survivors have 30 s to end."""

PAUSE_SECONDS = 1.0
TOO_MANY, INTERNAL = 429, 500
FAILURES = (ApiError, aiohttp.ClientError, TimeoutError)
REMEDY = (
    "uninstall without it (`helm uninstall --no-hooks`) and delete the Jobs of jobs of several nodes before their namespaces,"
    " see docs/installation.md"
)

logger = logging.getLogger("rewardfl_operator.release")


class NotReleased(Exception):
    """What could not be done."""


def main() -> None:
    """Release every Job, and exit with 1 and one line where that is not possible."""
    parser = argparse.ArgumentParser(
        description="Let go of the Kubernetes Jobs of RewardFLJobs before the operator is uninstalled."
    )
    parser.add_argument("--settings", type=Path, default=os.environ.get("REWARDFL_SETTINGS"), help="the operator's settings file")
    parser.add_argument("--kubeconfig", default=os.environ.get("KUBECONFIG"), help="default: the pod's service account")
    help_text = f"time for gangs that are about to start again (default: {PATIENCE_SECONDS:g})"
    parser.add_argument("--patience-seconds", type=float, default=PATIENCE_SECONDS, help=help_text)
    arguments = parser.parse_args()
    try:
        settings = OperatorSettings.load(arguments.settings)
        logs.configure(settings.log_format, settings.log_level)
        asyncio.run(release(settings.watch_namespaces, arguments.kubeconfig or None, arguments.patience_seconds))
    except (NotReleased, ConfigException, OSError, ValueError) as error:
        sys.exit(f"not released: {str(error).strip() or type(error).__name__}; {REMEDY}")


async def release(namespaces: list[str], kubeconfig: str | None, patience_seconds: float) -> None:
    """Release the Jobs of `namespaces` (empty: of all), those that are about to start again as soon as they have.

    Raises:
        NotReleased: the API server refused something, or did not answer in time. Everything else was done.
        ConfigException: there is neither a service account nor a usable kubeconfig.
    """
    cluster = await Cluster.connect(kubeconfig)
    try:
        turns, end = Turns(cluster, namespaces), monotonic() + patience_seconds
        left = await turns.turn(patient=monotonic() < end)
        while left:
            await asyncio.sleep(PAUSE_SECONDS)
            left = await turns.turn(patient=monotonic() < end)
    finally:
        await cluster.close()
    if turns.refused:
        raise NotReleased("; ".join(f"{what}: {why}" for what, why in turns.refused.items()))
    logger.info("nothing is left to release")


class Turns:
    """Looks at every Job, and does what can be done now.

    Args:
        cluster: the API server.
        namespaces: those that the operator serves; empty: all.
    """

    def __init__(self, cluster: Cluster, namespaces: list[str]) -> None:
        self._cluster = cluster
        self._namespaces: list[str | None] = [*namespaces] or [None]
        self._waits_for: set[str] = set()
        self.refused: dict[str, str] = {}
        """What could not be done, and what the API server says to that."""

    async def turn(self, patient: bool) -> bool:
        """Release what can be released now. Return whether to look again."""
        left = False
        for namespace in self._namespaces:
            try:
                found = await self._look(namespace)
            except FAILURES as error:
                left |= self._failed(f"the Jobs of {namespace or 'all namespaces'}", error, patient)
                continue
            for live, pods in found:
                left |= await self._try(live, pods, patient)
        return left

    async def _try(self, live: Raw, pods: list[Raw], patient: bool) -> bool:
        """Do what is to be done about one Job. Return whether to look at it again."""
        key = live["metadata"]["namespace"], live["metadata"]["name"]
        with logs.about(*key):
            try:
                left = await self._act(key, live, pods, patient)
            except FAILURES as error:
                return self._failed("/".join(key), error, patient)
        self.refused.pop("/".join(key), None)
        return left

    def _failed(self, what: str, error: Exception, patient: bool) -> bool:
        """Return whether it is worth to ask again; remember what is not."""
        why = str(error).strip() or type(error).__name__
        lasts = isinstance(error, ApiError) and ERRORS <= error.status < INTERNAL and error.status != TOO_MANY
        if lasts or not patient:
            self.refused[what] = why
            return False
        logger.warning("%s: %s; again in %.0f s", what, why, PAUSE_SECONDS)
        return True

    async def _look(self, namespace: str | None) -> list[tuple[Raw, list[Raw]]]:
        """Return every Job with its pods. Those are listed later: a count that changes meanwhile changes the Job's version."""
        try:
            jobs = await self._cluster.list_all(JOBS, namespace, CHILD_SELECTOR)
            pods = defaultdict[str, list[Raw]](list)
            for pod in await self._cluster.list_all(PODS, namespace, CHILD_SELECTOR):
                pods[owner_uid(pod)].append(pod)
        except ApiError as error:
            if namespace is None or error.status != FORBIDDEN:
                raise
            logger.warning("%s: left out: it is gone, or the operator has no role in it (%s)", namespace, error.message)
            return []
        return [(live, pods[live["metadata"]["uid"]]) for live in jobs]

    async def _act(self, key: Key, live: Raw, pods: list[Raw], patient: bool) -> bool:
        uid = live["metadata"]["uid"]
        match leaving.decide(live, pods, patient):
            case leaving.Wait():
                if uid not in self._waits_for:
                    logger.info("%s/%s: waiting until all of its pods are there again", *key)
                self._waits_for.add(uid)
                return True
            case leaving.Remove():
                await self._cluster.delete(JOBS, *key, uid)
                logger.info("%s/%s: deleted, since it is suspended; an operator makes it anew when it is resumed", *key)
            case leaving.Lower() as lower:
                return await self._lower(key, live, lower)
        return False

    async def _lower(self, key: Key, live: Raw, lower: leaving.Lower) -> bool:
        try:
            await self._cluster.patch(JOBS, *key, leaving.released(live, lower, datetime.now(UTC)))
        except ApiError as error:
            if error.status not in (CONFLICT, NOT_FOUND):
                raise
            return error.status == CONFLICT  # it has changed since it was listed
        logger.info("%s/%s: released: pod failure %d ends it", *key, lower.limit + 1)
        if not lower.suffices:
            logger.warning("%s/%s: all of its pods were evicted: delete it before its namespace (kubectl delete job)", *key)
        return False


if __name__ == "__main__":
    main()
