"""One reconcile: observe, decide, apply, tell. It depends on nothing but what it sees, so it may be killed anywhere.

The order of the writes is part of that: objects before the Kubernetes Job that needs them, events before the status
that says they were sent, the status before anything is cleaned up.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from rewardfl_api.errors import Reason
from rewardfl_api.job import RewardFLJob
from rewardfl_api.progress import PROGRESS_KEY
from rewardfl_api.spec import OWN_CONTROLLER_NAME
from rewardfl_api.status import RewardFLJobStatus

from . import events, gang, leaving, names, refusals, resources, situation, status, trips, upkeep
from .admission import PAUSE_SECONDS, Admission, passing_refusal, refused
from .causes import Cause
from .cluster import CONFIG_MAPS, CONFLICT, JOBS, PODS, REWARDFLJOBS, ApiError, Cluster
from .guard import TemplateError
from .informer import Informer, Key
from .kueue import Waiting, Workloads
from .observed import ENDED_POD_PHASES, Children, JobSeen, Pod, owner_uid
from .reading import Problem, Reading, believable, read
from .settings import OperatorSettings
from .store import JobStore
from .supporting import SupportingObjects

Raw = dict[str, Any]

FIRST_STATUS_SECONDS = 1.0
"""When to write the first status of a job whose Kubernetes Job was just made: by then its pods are known, which saves a write."""

BLOCKED_SECONDS = 2.0
"""How soon to look again, while objects of an earlier job of the same name are being removed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Informers:
    """Copies of the jobs' children, one informer a namespace served."""

    jobs: tuple[Informer, ...]
    pods: tuple[Informer, ...]
    progress: tuple[Informer, ...]
    supporting: tuple[Informer, ...]
    """Of those only the metadata."""

    @property
    def all(self) -> tuple[Informer, ...]:
        """Return every informer."""
        return (*self.jobs, *self.pods, *self.progress, *self.supporting)


class Reconciler:
    """Brings the cluster to what a RewardFLJob asks for, and its status to what the cluster is.

    Args:
        cluster: the API server.
        settings: what the operator was told.
        store: the RewardFLJobs.
        informers: their children.
        clock: the time, with a zone.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: OperatorSettings,
        store: JobStore,
        informers: Informers,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster, self._settings, self._store, self._informers = cluster, settings, store, informers
        self._clock, self._started = clock, clock()
        self._supporting = SupportingObjects(cluster, settings, informers.supporting, informers.progress)
        self._problems: dict[Key, Problem | None] = {}
        self._workloads = Workloads(cluster)
        self._said: dict[Key, str] = {}
        self._admission = Admission(cluster, settings)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one job, and return in how many seconds to look again; None: when something changes.

        Raises:
            ApiError: the API server could not, or would not, do what was asked; try again later.
        """
        try:
            return await self._reconcile(key)
        except ApiError as error:
            if error.is_end_of_namespace:
                await self._let_go(key)
            raise

    async def _let_go(self, key: Key) -> None:
        """Delete the Kubernetes Job of a namespace that is being deleted: it would keep the namespace's pods for ever.

        Pods go first there, and the Job controller keeps the last failed pod of each index until it has made another, which it
        may not (docs/decisions/0108-namespaces-that-end.md).
        """
        live, body = self._live_job(key), self._store.get(key)
        if live is None or body is None or "deletionTimestamp" in live["metadata"] or owner_uid(live) != body["metadata"]["uid"]:
            return
        logger.info("%s/%s: the namespace is being deleted, and the Kubernetes Job with it", *key)
        await self._cluster.delete(JOBS, *key, live["metadata"]["uid"])

    async def _reconcile(self, key: Key) -> float | None:
        body = self._store.get(key)
        if body is None or "deletionTimestamp" in body["metadata"] or self._leaves_alone(body, key):
            return None
        previous = believable(_previous_status(body), self._clock())
        try:
            job = RewardFLJob.parse(body)
        except ValidationError as error:
            await self._refuse(body, Reason.INVALID_SPEC, refusals.render(error), previous)
            return None
        try:
            just_made = not status.is_final(previous) and await self._bring_about(job, key)
        except (TemplateError, refusals.NameTaken) as error:
            reason = Reason.INVALID_TEMPLATE if isinstance(error, TemplateError) else Reason.INVALID_SPEC
            await self._refuse(body, reason, str(error), previous)
            return None
        except refusals.Blocked as error:
            self._say_once(key, str(error))
            await self._report(job, key, body, previous)
            return BLOCKED_SECONDS
        except ApiError as error:
            obstacle = passing_refusal(error)
            if obstacle is None:
                raise
            await self._report(job, key, body, previous, obstacle)
            return PAUSE_SECONDS
        is_first = just_made and previous.phase is None
        return FIRST_STATUS_SECONDS if is_first else await self._report(job, key, body, previous)

    def forget(self, key: Key) -> None:
        """Remember nothing more of a job that is gone."""
        self._supporting.forget(key)
        self._problems.pop(key, None)
        self._said.pop(key, None)
        self._admission.forget(key)

    def _say_once(self, key: Key, message: str) -> None:
        """Log what a job waits for, once and not at every look."""
        if self._said.get(key) != message:
            self._said[key] = message
            logger.info("%s/%s: %s", *key, message)

    def _leaves_alone(self, body: Raw, key: Key) -> bool:
        """Whether another controller looks after the job (`managedBy`); said once. Its spec may be one of another version."""
        manager = (body.get("spec") or {}).get("managedBy") or OWN_CONTROLLER_NAME
        if manager == OWN_CONTROLLER_NAME:
            return False
        self._say_once(key, f"left to {manager}, as spec.managedBy says")
        return True

    async def _bring_about(self, job: RewardFLJob, key: Key) -> bool:
        """Make the objects, and keep the Kubernetes Job's changeable fields up to date. Return whether it was made just now."""
        live = self._live_job(key)
        if live is not None:
            refusals.require_ours(f"Job {key[1]}", live, job)
        wanted_job = resources.indexed_job(job, self._settings) if live is None else None
        if wanted_job is not None and job.spec.template:
            await self._admission.check_template(wanted_job, job, key)
        await self._supporting.ensure(job, key)
        if live is not None:
            await self._update_job(live, job, key)
        elif wanted_job is not None and not job.spec.run_policy.suspend:
            self._require_no_pods(key)
            await self._create_job(wanted_job, job)
            return True
        return False

    async def _create_job(self, manifest: Raw, job: RewardFLJob) -> None:
        """Make the Kubernetes Job. Its name is its identity, so there can never be two.

        It is created, not applied: most of it cannot be changed afterwards, and only a creation names a misspelt field.
        """
        metadata = manifest["metadata"]
        try:
            live = await self._cluster.create(manifest)
        except ApiError as error:
            if error.is_refusal:
                raise TemplateError(refused(error)) from error
            found = await self._cluster.get(JOBS, metadata["namespace"], metadata["name"]) if error.status == CONFLICT else None
            if found is None:
                raise
            refusals.require_ours(f"Job {metadata['name']}", found, job)
            live = found
        for informer in self._informers.jobs:
            if informer.covers(metadata["namespace"]):
                informer.learn(live)

    async def _update_job(self, live: Raw, job: RewardFLJob, key: Key) -> None:
        """Bring the changeable fields up to date; remove the Job when it has to be made anew, or must not be there."""
        metadata = live["metadata"]
        if "deletionTimestamp" in metadata:
            raise refusals.Blocked("the Kubernetes Job is being removed")
        action = upkeep.of_running(job, live, leaving.released_before(self._started, self._clock()))
        if isinstance(action, upkeep.Remove):
            await self._cluster.delete(JOBS, *key, metadata["uid"], children_first=True)
            raise refusals.Blocked(f"{action.why}: its pods save a checkpoint, then the Kubernetes Job is removed")
        if action is not None:
            await self._cluster.patch(JOBS, *key, action.body)

    def _require_no_pods(self, key: Key) -> None:
        """Wait for the pods of a Job that is gone: they may be saving a checkpoint, and would meet the new ones."""
        pods = (Pod.parse(pod) for informer in self._informers.pods for pod in informer.of(key))
        if any(pod.phase not in ENDED_POD_PHASES for pod in pods):
            raise refusals.Blocked("waiting for the pods of an earlier run to end")

    async def _report(
        self, job: RewardFLJob, key: Key, body: Raw, previous: RewardFLJobStatus, obstacle: Cause | None = None
    ) -> float | None:
        """Write what is seen, act upon it, and return in how many seconds to look again."""
        if status.is_final(previous):
            await self._clean_up(job, key)
            return None
        children = self._children(job, key)
        waiting = await self._waiting(job, children)
        children = replace(children, held_by=waiting.message if waiting is not None else None)
        reading = self._read(job, children, key, previous)
        obstacle = obstacle or await self._admission.obstacle(job, children, key)
        new = status.derive(job, children, reading.progress, previous, self._clock(), obstacle)
        if status.is_final(new):
            children, reading = await self._look_closely(job, previous)
            new = status.derive(job, children, reading.progress, previous, self._clock())
        await self._tell_problem(job, key, reading.problem)
        await self._write(job, key, body, previous, new)
        if status.is_final(new):
            await self._clean_up(job, key)
            return None
        await self._suspend(job, key, reading, new)
        for eviction in gang.evictions(children, reading.progress):
            logger.info("%s/%s: evicting %s, which lost a peer", *key, eviction.pod)
            await self._cluster.evict(key[0], eviction.pod, eviction.grace_seconds)
        queue = waiting.look_again if waiting is not None else None
        times = (status.look_again(new, children, self._clock()), self._admission.look_again(key), queue)
        return min((time for time in times if time is not None), default=None)

    async def _suspend(self, job: RewardFLJob, key: Key, reading: Reading, new: RewardFLJobStatus) -> None:
        """Suspend a job whose guard asks for it, once for each broken rule: what asked and what was done are one write."""
        patch = trips.suspension(job, reading.progress, new)
        if patch is not None:
            logger.info("%s/%s: suspended, as its guard asks", *key)
            await self._cluster.patch(REWARDFLJOBS, *key, patch)

    async def _waiting(self, job: RewardFLJob, children: Children) -> Waiting | None:
        """Ask Kueue why a job does not run that its user wants to run; None where Kueue has nothing to do with it."""
        seen = children.job
        if seen is None or not seen.suspended or seen.deleting or job.spec.run_policy.suspend:
            return None
        return await self._workloads.of(seen, job.metadata.namespace)

    async def _look_closely(self, job: RewardFLJob, previous: RewardFLJobStatus) -> tuple[Children, Reading]:
        """Read pods and report anew before a result is written for good: the informers may lag behind one another."""
        metadata = job.metadata
        live = await self._cluster.get(JOBS, metadata.namespace, metadata.name)
        selector = f"{names.MANAGED_BY_LABEL}={names.FIELD_MANAGER},{names.JOB_LABEL}={metadata.name}"
        pods = await self._cluster.list_all(PODS, metadata.namespace, selector)
        report = await self._cluster.get(CONFIG_MAPS, metadata.namespace, job.progress_name)
        children = _children(live, pods, metadata.uid)
        return children, self._reading_of(report, children, previous)

    async def _tell_problem(self, job: RewardFLJob, key: Key, problem: Problem | None) -> None:
        """Say once, not at every report, that reports are ignored."""
        if problem is not None and self._problems.get(key) != problem:
            await self._tell(events.of_problem(problem), job)
        self._problems[key] = problem

    async def _tell(self, event: events.Event, job: RewardFLJob) -> None:
        """Send an event; one that was sent before is brought up to date."""
        manifest = events.manifest(event, job, self._clock())
        try:
            await self._cluster.create(manifest)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            await self._cluster.apply(manifest)

    async def _write(self, job: RewardFLJob, key: Key, body: Raw, previous: RewardFLJobStatus, new: RewardFLJobStatus) -> None:
        """Send the events of the change, then write the status, if it differs from what stands there."""
        wanted = new.to_kubernetes()
        if wanted == body.get("status"):
            return
        for event in events.of_change(previous, new):
            await self._tell(event, job)
        if new.phase != previous.phase:
            logger.info("%s/%s: %s -> %s", *key, previous.phase, new.phase)
        metadata = await self._cluster.apply_status(REWARDFLJOBS, *key, job.metadata.uid, wanted)
        self._cluster.metrics.status_writes.inc()
        if (tripped := trips.newly_tripped(previous, new)) is not None:
            self._cluster.metrics.guard_trips.labels(tripped.reason).inc()
        if metadata.get("generation") == body["metadata"].get("generation"):  # else the watch tells of the new spec
            self._store.put({**body, "metadata": metadata, "status": wanted})

    async def _refuse(self, body: Raw, reason: Reason, message: str, previous: RewardFLJobStatus) -> None:
        """Say what is wrong with the resource. It is looked at again when it is edited."""
        if status.is_final(previous):
            return
        stub = refusals.stub(body)
        new = status.refused(stub.metadata.generation, reason, message, previous, self._clock())
        key = (stub.metadata.namespace, stub.metadata.name)
        await self._write(stub, key, body, previous, new)

    async def _clean_up(self, job: RewardFLJob, key: Key) -> None:
        """Carry out what happens after the end, now that the result is on record."""
        live = self._live_job(key)
        if live is None or owner_uid(live) != job.metadata.uid or "deletionTimestamp" in live["metadata"]:
            return
        action = upkeep.of_finished(job, live)
        if action is not None:
            await self._cluster.patch(JOBS, *key, action.body)
        if job.spec.run_policy.clean_pod_policy == "All":
            for pod in self._children(job, key).pods:
                await self._cluster.delete(PODS, key[0], pod.name, pod.uid)

    def _live_job(self, key: Key) -> Raw | None:
        """Return the Kubernetes Job of that name, as last seen."""
        found = [item for informer in self._informers.jobs for item in informer.of(key) if item["metadata"]["name"] == key[1]]
        return found[0] if found else None

    def _children(self, job: RewardFLJob, key: Key) -> Children:
        pods = [pod for informer in self._informers.pods for pod in informer.of(key)]
        return _children(self._live_job(key), pods, job.metadata.uid)

    def _read(self, job: RewardFLJob, children: Children, key: Key, previous: RewardFLJobStatus) -> Reading:
        reports = [
            item for informer in self._informers.progress for item in informer.of(key) if owner_uid(item) == job.metadata.uid
        ]
        return self._reading_of(reports[0] if reports else None, children, previous)

    def _reading_of(self, report: Raw | None, children: Children, previous: RewardFLJobStatus) -> Reading:
        text = ((report or {}).get("data") or {}).get(PROGRESS_KEY)
        return read(text, previous, situation.writer_started(children.current.get(0)), self._clock())


def _children(live: Raw | None, pods: list[Raw], owner: str) -> Children:
    """Put together what belongs to the job of this uid; what an earlier one of the same name left behind does not."""
    job = JobSeen.parse(live) if live is not None else None
    if job is None or job.owner != owner:
        return Children()
    return Children(job, tuple(Pod.parse(pod) for pod in pods if owner_uid(pod) == job.uid))


def _previous_status(body: Raw) -> RewardFLJobStatus:
    """Read the status as it stands. One that was damaged counts as none: it is written anew."""
    try:
        return RewardFLJobStatus.model_validate(body.get("status") or {})
    except ValidationError as error:
        logger.warning("%s: the status is damaged and is written anew: %s", body["metadata"]["name"], error.errors()[0]["msg"])
        return RewardFLJobStatus()
