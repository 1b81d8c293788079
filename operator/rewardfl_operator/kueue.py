"""What Kueue says of a Job that waits in its queue: read from the Job's Workload, only while it waits, and only read.

Workloads are not watched. They hold whole pod templates and belong to every kind of job of the cluster, so a copy of them would
cost more memory than all that the operator looks after. That a Job may start is told by the Job itself; what is read here is
only said to people (docs/decisions/0113-queues.md).
"""

import logging
from dataclasses import dataclass
from time import monotonic
from typing import Any

from .cluster import FORBIDDEN, NOT_FOUND, ApiError, Cluster, Kind
from .observed import JobSeen, Seen, parse_conditions

Raw = dict[str, Any]

GROUP = "kueue.x-k8s.io"
VERSIONS = ("v1beta2", "v1beta1")
JOB_UID_LABEL = f"{GROUP}/job-uid"
LONGEST_MESSAGE = 1024

LOOK_AGAIN_SECONDS = 30.0
"""How often to look what keeps a job waiting."""

SOON_SECONDS = 1.0
"""How soon to look again, when Kueue has not said anything yet; doubled each time that it still has not."""

ABSENT_SECONDS = 300.0
"""How long Kueue counts as not installed, once it was found so."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """That a Job waits for Kueue.

    Args:
        message: why, in Kueue's words; empty when it has not said so.
        look_again: in how many seconds it may say something else.
    """

    message: str
    look_again: float


class Workloads:
    """Kueue's Workloads, where it is installed and may be read.

    Args:
        cluster: the API server.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._version = VERSIONS[0]
        self._absent_until = 0.0
        self._silent: dict[str, float] = {}

    async def of(self, job: JobSeen, namespace: str) -> Waiting | None:
        """Return what Kueue says of a suspended Job; None when Kueue has nothing to do with it.

        Raises:
            ApiError: the API server could not answer.
        """
        found = await self._find(job, namespace)
        if not found and not job.queue:
            return None
        if found is None:
            return Waiting("", ABSENT_SECONDS)
        message = parse(found[0]) if found else ""
        if message:
            self._silent.pop(job.uid, None)
            return Waiting(message, LOOK_AGAIN_SECONDS)
        pause = self._silent[job.uid] = min(2 * self._silent.get(job.uid, SOON_SECONDS / 2), LOOK_AGAIN_SECONDS)
        return Waiting("", pause)

    async def _find(self, job: JobSeen, namespace: str) -> list[Raw] | None:
        """Return the Job's Workloads; None where there is no Kueue, or it may not be read."""
        if monotonic() < self._absent_until:
            return None
        for version in dict.fromkeys((self._version, *VERSIONS)):
            kind = Kind(GROUP, version, "Workload", "workloads")
            try:
                found = await self._cluster.list_all(kind, namespace, f"{JOB_UID_LABEL}={job.uid}")
            except ApiError as error:
                if error.status == NOT_FOUND:
                    continue
                if error.status != FORBIDDEN:
                    raise
                logger.info("what Kueue says of queued jobs is not shown: %s", error.message)
                break
            self._version = version
            return found
        self._absent_until = monotonic() + ABSENT_SECONDS
        return None


def parse(workload: Raw) -> str:
    """Return why a Workload waits: why its quota was taken away, if it was, and why it has none."""
    conditions = parse_conditions(workload.get("status") or {})
    told = [_message(conditions.get(kind), holds) for kind, holds in (("Evicted", True), ("QuotaReserved", False))]
    if (workload.get("spec") or {}).get("active") is False:
        told.append("its Workload was deactivated (spec.active)")
    return " ".join(f"{text.rstrip('.')}." for text in dict.fromkeys(told) if text)[:LONGEST_MESSAGE]


def _message(condition: Seen | None, holds: bool) -> str:
    """The condition's own words, while it does (or does not) hold."""
    return condition.message if condition is not None and condition.holds is holds else ""
