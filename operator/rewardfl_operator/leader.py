"""One of several replicas leads: the one that holds a Lease. It says who may write, and nothing about what is written.

The rules are client-go's. Clocks of two machines are never compared: a replica takes over when it has seen the Lease unchanged
for the whole of its duration, by its own clock; and the holder stops by its own clock well before that.
"""

import asyncio
import logging
import os
import socket
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp

from .cluster import CONFLICT, LEASES, ApiError, Cluster
from .settings import LeaderElectionSettings

Raw = dict[str, Any]

POD_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POD_VARIABLE = "REWARDFL_POD"
"""Environment variable that identifies the pod. Its next container takes its own Lease over without waiting."""

RELEASE_SECONDS = 3.0
"""How long giving the Lease back may take when the operator ends; without it the next leader waits until it expires."""

logger = logging.getLogger(__name__)


class LeadershipLost(Exception):
    """The Lease could not be renewed in time, or is somebody else's: this process must not write any more."""


class Leadership:
    """This replica's part in the election.

    Args:
        cluster: a connection of its own, so that renewals never queue behind the operator's other requests.
        settings: name and times of the Lease.
        identity: who this replica is; no other process that is alive may have the same.
    """

    def __init__(self, cluster: Cluster, settings: LeaderElectionSettings, identity: str | None = None) -> None:
        self._cluster, self._settings = cluster, settings
        self._namespace = settings.namespace or own_namespace()
        self.identity = identity or own_identity()
        self.leader = ""
        """Who leads, as last seen; empty when nobody does."""
        self._lease: Raw | None = None
        self._seen_at = monotonic()
        self._renewed: float | None = None
        self._trouble = ""

    def is_held(self) -> bool:
        """Whether this replica may write at this moment. Others take over only after it has begun to say no."""
        return self._renewed is not None and monotonic() - self._renewed < self._settings.renew_deadline_seconds

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while True:
            if await self._try_to_take():
                break
            await asyncio.sleep(self._settings.retry_seconds)
        logger.info("this replica (%s) leads now", self.identity)

    async def hold(self) -> None:
        """Renew the Lease for as long as that is possible.

        Raises:
            LeadershipLost: always, in the end.
        """
        while True:
            await asyncio.sleep(self._settings.retry_seconds)
            await self._renew()
            if not self.is_held():
                raise LeadershipLost(
                    f"lease {self._settings.lease_name} was not renewed for {self._settings.renew_deadline_seconds:g} s"
                    if self.leader in ("", self.identity)
                    else f"lease {self._settings.lease_name} was taken by {self.leader}"
                )

    async def release(self) -> None:
        """Give the Lease back, if it is held, so that the next replica need not wait. Call it when nothing writes any more."""
        if self._lease is None or not self.is_held():
            return
        self._renewed = None
        with suppress(ApiError, aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._put({**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()})
                logger.info("the lease is given back")

    async def _try_to_take(self) -> bool:
        """Take the Lease if nobody holds it, and return whether that was so."""
        began = monotonic()
        try:
            async with asyncio.timeout(self._settings.renew_deadline_seconds):
                await self._look()
                if not self._is_free():
                    return False
                await self._put(self._claim())
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            self._complain(error)
            return False
        self._renewed, self._trouble = began, ""
        return True

    async def _renew(self) -> None:
        """Renew the Lease once. What goes wrong shows in `is_held` when its time is over."""
        began = monotonic()
        if self._renewed is None or not self.is_held():
            return
        try:
            async with asyncio.timeout(self._renewed + self._settings.renew_deadline_seconds - began):
                if self._lease is None:
                    await self._look()
                    if self.leader not in ("", self.identity):
                        self._renewed = None
                        return
                await self._put(self._claim())
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            self._complain(error)
            self._lease = None
            return
        self._renewed, self._trouble = began, ""

    async def _look(self) -> None:
        """Read the Lease, and remember since when it has been as it is."""
        found = await self._cluster.get(LEASES, self._namespace, self._settings.lease_name)
        if found is None or self._lease is None or _version(found) != _version(self._lease):
            self._seen_at = monotonic()
        self._lease = found
        holder = str(found["spec"].get("holderIdentity") or "") if found is not None else ""
        if holder != self.leader and holder not in ("", self.identity):
            logger.info("%s leads; this replica (%s) stands by", holder, self.identity)
        self.leader = holder

    def _complain(self, error: Exception) -> None:
        """Log what keeps this replica from the Lease, once. A conflict is how one of two replicas learns that it was second."""
        trouble = str(error) or type(error).__name__
        if trouble != self._trouble and not (isinstance(error, ApiError) and error.status == CONFLICT):
            logger.warning("lease %s: %s; trying again", self._settings.lease_name, trouble)
        self._trouble = trouble

    def _is_free(self) -> bool:
        """Whether nobody holds the Lease, this replica does, or its holder has not renewed it for the whole of its duration."""
        if self._lease is None or self.leader in ("", self.identity):
            return True
        lasts = float(self._lease["spec"].get("leaseDurationSeconds") or self._settings.lease_duration_seconds)
        return monotonic() - self._seen_at > lasts

    def _claim(self) -> Raw:
        """Return the Lease's spec with this replica as the holder."""
        now, old = _now(), (self._lease or {"spec": {}})["spec"]
        new = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._settings.lease_duration_seconds,
            "renewTime": now,
            "acquireTime": old.get("acquireTime", now),
            "leaseTransitions": old.get("leaseTransitions", 0),
        }
        if old.get("holderIdentity") != self.identity:
            new |= {"acquireTime": now, "leaseTransitions": int(new["leaseTransitions"]) + (1 if old else 0)}
        return new

    async def _put(self, spec: Raw) -> None:
        """Create the Lease, or replace the version that was seen: of two replicas that try, one gets a conflict."""
        metadata = {"name": self._settings.lease_name, "namespace": self._namespace}
        manifest: Raw = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        if self._lease is None:
            self._lease = await self._cluster.create(manifest)
        else:
            self._lease = await self._cluster.replace({**manifest, "metadata": self._lease["metadata"]})
        self.leader = str(spec["holderIdentity"])


def own_namespace() -> str:
    """Return the namespace of the pod.

    Raises:
        ValueError: the process runs in no pod.
    """
    try:
        return POD_NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(
            "leaderElection.namespace is empty and this process runs in no pod: name the Lease's namespace, or set"
            " leaderElection.enabled: false"
        ) from error


def own_identity() -> str:
    """Return a name that no other live process has: the pod's where it is told (one container at a time), else a random one."""
    return os.environ.get(POD_VARIABLE) or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def _version(lease: Raw) -> str:
    return str(lease["metadata"]["resourceVersion"])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
