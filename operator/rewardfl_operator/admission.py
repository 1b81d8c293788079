"""Asks the API server whether it would let a job's pods in, without making any: a server-side dry run.

Before anything of a job with a template of its own is made, its Job and one of its pods are tried, so that a bad template is
refused while there is nothing to clean up. And where pods that ought to be there are missing, one is tried to learn why: the
Job controller is told the same, but tells it to an event of its own only. Nothing here changes anything in the cluster
(docs/decisions/0115-admission.md).
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import aiohttp

from rewardfl_api.errors import Reason
from rewardfl_api.job import RewardFLJob

from . import resources
from .causes import LONGEST_MESSAGE, Cause
from .cluster import FORBIDDEN, ApiError, Cluster
from .guard import TemplateError
from .informer import Key
from .names import service_account_name
from .observed import Children
from .settings import OperatorSettings

Raw = dict[str, Any]

PATIENCE_SECONDS = 10.0
"""Time that the Job controller has for making pods before anybody asks why there are none."""

PAUSE_SECONDS = 30.0
"""Time between two questions about the same job."""

SPACING_SECONDS = 0.25
"""Least time between two questions, whichever jobs they are about: a thousand jobs may be waiting."""

ACCOUNT_OF_EVERY_NAMESPACE = "default"
QUOTA = re.compile(r"exceeded quota|failed quota|insufficient quota")
NOT_THE_JOBS = re.compile(r'User "[^"]*" cannot create|is being terminated|status unknown for quota')
"""Refusals that say something of the operator's role, or of a moment, and nothing of the job."""

logger = logging.getLogger(__name__)


@dataclass
class Missing:
    """Pods of a job that ought to be there."""

    since: float
    asked: float | None = None
    cause: Cause | None = None

    @property
    def due(self) -> float:
        """When to ask (again)."""
        return self.since + PATIENCE_SECONDS if self.asked is None else self.asked + PAUSE_SECONDS


class Admission:
    """What the API server says of pods that it has not been asked to keep.

    Args:
        cluster: the API server.
        settings: what the operator was told.
        clock: seconds, monotonic.
    """

    def __init__(self, cluster: Cluster, settings: OperatorSettings, clock: Callable[[], float] = monotonic) -> None:
        self._cluster, self._settings, self._clock = cluster, settings, clock
        self._missing: dict[Key, Missing] = {}
        self._next_question = 0.0

    async def check_template(self, manifest: Raw, job: RewardFLJob, key: Key) -> None:
        """Try the Job `manifest` and a pod of it. What may heal by itself, such as a quota that is used up, is an obstacle only:
        the Job controller goes on trying.

        Raises:
            TemplateError: the API server refuses one of them for good; the message is its own.
            ApiError: it could not answer.
        """
        self._missing.pop(key, None)
        for candidate in (manifest, pod_of(manifest, job)):
            try:
                await self._cluster.create(candidate, dry_run=True)
            except ApiError as error:
                if error.is_refusal:
                    raise TemplateError(refused(error)) from error
                if error.status != FORBIDDEN:
                    raise
                cause = passing_refusal(error)
                if cause is not None:
                    now = self._clock()
                    self._missing[key] = Missing(now, now, cause)

    async def obstacle(self, job: RewardFLJob, children: Children, key: Key) -> Cause | None:
        """Return why pods that ought to be there cannot be made; None where none is missing, or nothing is in their way."""
        if children.job is not None and not is_waiting_for_pods(job, children):
            self._missing.pop(key, None)
            return None
        if children.job is None and key not in self._missing:
            return None
        now = self._clock()
        missing = self._missing.setdefault(key, Missing(now))
        if now >= max(missing.due, self._next_question):
            self._next_question, missing.asked = now + SPACING_SECONDS, now
            missing.cause = await self._ask(job)
        return missing.cause

    def look_again(self, key: Key) -> float | None:
        """Return in how many seconds to ask again for this job; None when no pod of it is missing."""
        missing = self._missing.get(key)
        return max(missing.due - self._clock(), SPACING_SECONDS) if missing is not None else None

    def forget(self, key: Key) -> None:
        """Remember nothing more of a job that is gone."""
        self._missing.pop(key, None)

    async def _ask(self, job: RewardFLJob) -> Cause | None:
        """Try one pod. No answer is no reason for anything: the question was only asked to be able to say more."""
        try:
            await self._cluster.create(pod_of(resources.indexed_job(job, self._settings), job), dry_run=True)
        except ApiError as error:
            if error.is_end_of_namespace:
                raise
            return passing_refusal(error)
        except (aiohttp.ClientError, TimeoutError, TemplateError) as error:
            logger.debug("%s/%s: could not ask for a pod: %s", job.metadata.namespace, job.metadata.name, error)
        return None


def is_waiting_for_pods(job: RewardFLJob, children: Children) -> bool:
    """Whether the Job controller ought to have made pods that are not there."""
    seen = children.job
    if seen is None or seen.suspended or seen.deleting or seen.has_succeeded or seen.failure is not None:
        return False
    return len(children.current) < job.spec.nodes


def pod_of(manifest: Raw, job: RewardFLJob) -> Raw:
    """Return a pod as the Job controller would make it from the Job `manifest`.

    The job's own service account may not be there yet, and says nothing about the template: every namespace's takes its place.
    """
    template = manifest["spec"]["template"]
    spec = dict(template["spec"])
    if spec.get("serviceAccountName") == service_account_name(job):
        spec["serviceAccountName"] = ACCOUNT_OF_EVERY_NAMESPACE
    metadata = {**template.get("metadata", {}), "name": f"{job.metadata.name}-0-check", "namespace": job.metadata.namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def passing_refusal(error: ApiError) -> Cause | None:
    """Return a refusal that may pass, as when a quota is used up; None for any other answer."""
    if error.status != FORBIDDEN or NOT_THE_JOBS.search(error.message):
        return None
    reason = Reason.QUOTA_EXCEEDED if QUOTA.search(error.message) else Reason.ADMISSION_REFUSED
    return Cause(reason, error.message[:LONGEST_MESSAGE])


def refused(error: ApiError) -> str:
    """Return what is said about a template that the API server refuses."""
    return f"template: the API server refuses the merged pod: {error.message}"
