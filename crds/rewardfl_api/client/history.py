"""The events of a job, and its pods: what is asked of the cluster beside the job itself."""

from dataclasses import dataclass
from datetime import datetime

from kubernetes.client import CoreV1Api
from kubernetes.client.models import V1ContainerStatus, V1Pod

from ..job import GROUP, KIND
from .connection import Connection
from .view import Job

JOB_LABEL = f"{GROUP}/job-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
STAGE, TRAINER = "stage", "trainer"


@dataclass(frozen=True)
class Event:
    """An event of a job."""

    time: datetime | None
    kind: str
    reason: str
    message: str
    count: int


@dataclass(frozen=True)
class Pod:
    """A pod of a job."""

    raw: V1Pod

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.raw.metadata and self.raw.metadata.name)

    @property
    def uid(self) -> str:
        """Its uid."""
        return str(self.raw.metadata and self.raw.metadata.uid)

    @property
    def node(self) -> int:
        """Which of the job's nodes it is, from 0."""
        labels = (self.raw.metadata and self.raw.metadata.labels) or {}
        return int(labels.get(INDEX_LABEL, 0))

    @property
    def created(self) -> float:
        """When it was created, in seconds since the epoch."""
        time = self.raw.metadata and self.raw.metadata.creation_timestamp
        return time.timestamp() if time else 0.0

    @property
    def phase(self) -> str:
        """Its phase."""
        return str((self.raw.status and self.raw.status.phase) or "")

    def has_started(self, container: str) -> bool:
        """Whether there is, or was, a log of this container."""
        status = self._container(container)
        state = status.state if status is not None else None
        return state is not None and (state.running is not None or state.terminated is not None)

    def has_ended(self, container: str) -> bool:
        """Whether this container's log is complete."""
        status = self._container(container)
        return status is not None and status.state is not None and status.state.terminated is not None

    def _container(self, name: str) -> V1ContainerStatus | None:
        status = self.raw.status
        found = [*((status and status.init_container_statuses) or []), *((status and status.container_statuses) or [])]
        return next((item for item in found if item.name == name), None)


def events(connection: Connection, job: Job) -> list[Event]:
    """Return the events of a job, the oldest first.

    Raises:
        ClientError: the cluster cannot be asked.
    """
    selector = f"involvedObject.kind={KIND},involvedObject.name={job.name}"
    with connection.errors(f"the events of {job.name}"):
        answer = CoreV1Api(connection.api).list_namespaced_event(
            job.namespace, field_selector=selector, _request_timeout=connection.timeouts
        )
    found = [
        Event(
            item.last_timestamp or item.event_time or item.metadata.creation_timestamp,
            item.type or "",
            item.reason or "",
            item.message or "",
            item.count or 1,
        )
        for item in answer.items
        if item.involved_object.uid in (None, "", job.metadata.uid)
    ]
    return sorted(found, key=lambda event: event.time.timestamp() if event.time else 0.0)


def pods(connection: Connection, job: Job) -> list[Pod]:
    """Return the pods of a job, also those of earlier attempts, by node and age.

    Raises:
        ClientError: the cluster cannot be asked.
    """
    with connection.errors(f"the pods of {job.name}"):
        answer = CoreV1Api(connection.api).list_namespaced_pod(
            job.namespace, label_selector=f"{JOB_LABEL}={job.name}", _request_timeout=connection.timeouts
        )
    return sorted((Pod(item) for item in answer.items), key=lambda pod: (pod.node, pod.created))
