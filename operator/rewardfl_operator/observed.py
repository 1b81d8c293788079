"""What the operator has seen of a job's children, parsed once from the API server's JSON into what the decisions need.

Lenient where the API server is the author (an absent field means "not yet"), since these objects are its own. Decides nothing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .names import COMPLETION_INDEX_LABEL, QUEUE_LABEL
from .pods import STAGE, TRAINER

Raw = dict[str, Any]


ENDED_POD_PHASES = ("Succeeded", "Failed")
"""Phases of a pod none of whose containers runs any more."""


@dataclass(frozen=True)
class Seen:
    """A Kubernetes condition."""

    holds: bool
    reason: str
    message: str
    time: datetime | None


@dataclass(frozen=True)
class Container:
    """One container of a pod."""

    name: str
    waiting_reason: str = ""
    waiting_message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    exit_code: int | None = None
    exit_reason: str = ""
    message: str = ""
    """The termination message."""

    @property
    def has_started(self) -> bool:
        """Whether it runs or has run."""
        return self.started is not None or self.exit_code is not None

    @classmethod
    def parse(cls, raw: Raw) -> "Container":
        """Read a containerStatus."""
        state = raw.get("state") or {}
        waiting, running, ended = (state.get(key) or {} for key in ("waiting", "running", "terminated"))
        return cls(
            name=raw.get("name", ""),
            waiting_reason=waiting.get("reason", ""),
            waiting_message=waiting.get("message", ""),
            started=parse_time(running.get("startedAt") or ended.get("startedAt")),
            finished=parse_time(ended.get("finishedAt")),
            exit_code=ended.get("exitCode"),
            exit_reason=ended.get("reason", ""),
            message=ended.get("message", ""),
        )


@dataclass(frozen=True)
class Pod:
    """One pod of a job."""

    name: str
    uid: str
    index: int
    phase: str
    created: datetime
    deleting: bool
    reason: str
    message: str
    conditions: dict[str, Seen]
    containers: dict[str, Container]

    @property
    def is_live(self) -> bool:
        """Whether it runs, or may still run."""
        return self.phase not in ENDED_POD_PHASES and not self.deleting

    @property
    def is_disrupted(self) -> bool:
        """Whether Kubernetes took it away: eviction, preemption, a lost node. Such an end is not counted as a failure."""
        return "DisruptionTarget" in self.conditions and self.conditions["DisruptionTarget"].holds

    @property
    def stage(self) -> Container:
        """The container that fetches."""
        return self.containers.get(STAGE, Container(STAGE))

    @property
    def trainer(self) -> Container:
        """The container that trains."""
        return self.containers.get(TRAINER, Container(TRAINER))

    @classmethod
    def parse(cls, raw: Raw) -> "Pod":
        """Read a Pod."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        found = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        return cls(
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            index=_index(metadata),
            phase=status.get("phase", "Pending"),
            created=parse_time(metadata.get("creationTimestamp")) or datetime.min.replace(tzinfo=UTC),
            deleting="deletionTimestamp" in metadata,
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            conditions=parse_conditions(status),
            containers={item.name: item for item in map(Container.parse, found)},
        )


@dataclass(frozen=True)
class JobSeen:
    """The Kubernetes Job of a RewardFLJob."""

    uid: str
    owner: str
    """Uid of the controlling owner; empty when it has none."""
    suspended: bool
    queue: str
    """Kueue's queue that it belongs to; empty when it says none."""
    deleting: bool
    active: int
    succeeded: int
    failed: int
    started: datetime | None
    completed: datetime | None
    conditions: dict[str, Seen]

    def holds(self, condition: str) -> bool:
        """Whether a condition is there and true."""
        return condition in self.conditions and self.conditions[condition].holds

    @property
    def has_succeeded(self) -> bool:
        """Whether all of its pods have ended well."""
        return self.holds("Complete")

    @property
    def failure(self) -> Seen | None:
        """Why the Job controller gave up, as soon as it has decided to."""
        for condition in ("Failed", "FailureTarget"):
            if self.holds(condition):
                return self.conditions[condition]
        return None

    @classmethod
    def parse(cls, raw: Raw) -> "JobSeen":
        """Read a Job."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        return cls(
            uid=metadata.get("uid", ""),
            owner=owner_uid(raw),
            suspended=bool((raw.get("spec") or {}).get("suspend", False)),
            queue=(metadata.get("labels") or {}).get(QUEUE_LABEL, ""),
            deleting="deletionTimestamp" in metadata,
            active=status.get("active", 0),
            succeeded=status.get("succeeded", 0),
            failed=status.get("failed", 0),
            started=parse_time(status.get("startTime")),
            completed=parse_time(status.get("completionTime")),
            conditions=parse_conditions(status),
        )


@dataclass(frozen=True)
class Children:
    """What is seen of a job's children at one moment."""

    job: JobSeen | None = None
    pods: tuple[Pod, ...] = ()
    held_by: str | None = None
    """What Kueue says of the Job's Workload; None when there is none."""

    @property
    def live_pods(self) -> tuple[Pod, ...]:
        """Pods that run or may still run, by index."""
        return tuple(sorted((pod for pod in self.pods if pod.is_live), key=lambda pod: pod.index))

    @property
    def ending_pods(self) -> int:
        """How many pods have been told to stop and still run: they may be saving a checkpoint."""
        return sum(pod.deleting and pod.phase not in ENDED_POD_PHASES for pod in self.pods)

    @property
    def current(self) -> dict[int, Pod]:
        """For each index the pod that does its work, or has done it."""
        good = [pod for pod in self.pods if pod.is_live or pod.phase == "Succeeded"]
        return {pod.index: pod for pod in sorted(good, key=lambda pod: pod.created)}


def owner_uid(raw: Raw) -> str:
    """Return the uid of an object's controlling owner; empty when it has none."""
    owners = (raw.get("metadata") or {}).get("ownerReferences") or []
    return next((owner.get("uid", "") for owner in owners if owner.get("controller")), "")


def parse_conditions(status: Raw) -> dict[str, Seen]:
    """Read the conditions of a Pod or Job by type."""
    return {
        item.get("type", ""): Seen(
            holds=item.get("status") == "True",
            reason=item.get("reason", ""),
            message=item.get("message", ""),
            time=parse_time(item.get("lastTransitionTime")),
        )
        for item in status.get("conditions") or []
    }


def parse_time(text: str | None) -> datetime | None:
    """Read one of Kubernetes' times; None when there is none."""
    return datetime.fromisoformat(text) if text else None


def _index(metadata: Raw) -> int:
    """Read the completion index; pods that the Job controller did not make count as 0."""
    text = (metadata.get("labels") or {}).get(COMPLETION_INDEX_LABEL, "0")
    return int(text) if text.isdigit() else 0
