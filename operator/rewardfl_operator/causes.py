"""Why pods failed, or do not start: from termination messages, exit codes and what the kubelet and the scheduler say. Pure."""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic.alias_generators import to_camel

from rewardfl_api.errors import FINAL_EXIT_CODES, ExitCode, Reason, TerminationMessage
from rewardfl_api.printable import printable
from rewardfl_api.reasons import EXPLANATIONS

from .observed import Container, Pod, Seen

SIGKILL_EXIT_CODE = 137
LARGEST_EXIT_CODE = 255
LONGEST_MESSAGE = 2048
READY_PATIENCE = timedelta(minutes=1)
"""Attaching a volume takes its time; longer than this is worth a word."""

NEVER = datetime.max.replace(tzinfo=UTC)

REASON_OF_EXIT_CODE = {
    ExitCode.USAGE: Reason.BAD_USAGE,
    ExitCode.BAD_DATA: Reason.BAD_DATASET,
    ExitCode.MISSING_INPUT: Reason.OBJECT_NOT_FOUND,
    ExitCode.UNAVAILABLE: Reason.STORAGE_UNAVAILABLE,
    ExitCode.IO_ERROR: Reason.IO_FAILED,
    ExitCode.BAD_CONFIGURATION: Reason.BAD_CONFIGURATION,
    ExitCode.TERMINATED: Reason.TERMINATED,
}
"""For containers that left no message behind."""

CONSEQUENCES = (Reason.TERMINATED, Reason.DISRUPTED)
IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
CONFIGURATION_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
SECRET_IN_MESSAGE = re.compile(r"secret", re.IGNORECASE)
TRAINER_FIELD = re.compile(r"\b(training|storage|deepspeed)\.([a-z][a-z0-9_]*_[a-z0-9_]+)")
VOLUME_IN_MESSAGE = re.compile(r"persistentvolumeclaim|unbound.*volume|volume node affinity", re.IGNORECASE)


@dataclass(frozen=True)
class Cause:
    """Why something failed or waits."""

    reason: Reason
    message: str
    hint: str = ""
    exit_code: int | None = None
    time: datetime = NEVER
    pod: str = ""
    container: str = ""
    rank: int | None = None
    log_tail: str = ""

    @property
    def remedy(self) -> str:
        """What to do; empty where nothing has to be done."""
        return self.hint or EXPLANATIONS[self.reason].remedy

    @property
    def text(self) -> str:
        """What happened and what to do, for a condition."""
        message = self.message.strip()
        return f"{message if message.endswith(('.', '!', '?')) else message + '.'} {self.remedy}".strip()

    @property
    def order(self) -> tuple[int, datetime]:
        """Sorts the causes of one failure: what ends the job, then what is specific, then the rest; the earliest first."""
        if self.exit_code in FINAL_EXIT_CODES:
            return 0, self.time
        if self.reason in CONSEQUENCES:
            return 3, self.time
        return (2 if self.reason is Reason.TRAINER_FAILED else 1), self.time


def in_resource_spelling(text: str) -> str:
    """Return `text` with the trainer's field names (training.num_frames) as the resource spells them (training.numFrames)."""
    return TRAINER_FIELD.sub(lambda field: f"{field[1]}.{to_camel(field[2])}", text)


def of_pod(pod: Pod) -> Cause | None:
    """Return why `pod` failed; None when it did not."""
    ended = next((container for container in (pod.stage, pod.trainer) if container.exit_code not in (None, 0)), None)
    if pod.is_disrupted and (ended is None or ended.exit_code not in FINAL_EXIT_CODES):
        seen = pod.conditions["DisruptionTarget"]
        told = f"pod {pod.name}: {seen.message or seen.reason}"[:LONGEST_MESSAGE]
        return Cause(Reason.DISRUPTED, told, time=seen.time or NEVER, pod=pod.name)
    if ended is not None:
        return replace(_of_container(pod, ended), pod=pod.name, container=ended.name)
    if pod.phase == "Failed":
        told = f"pod {pod.name}: {pod.reason or 'failed'}: {pod.message}"[:LONGEST_MESSAGE]
        return Cause(Reason.TRAINER_FAILED, told, pod=pod.name)
    return None


def first_failure(pods: tuple[Pod, ...]) -> Cause | None:
    """Return the cause of the last attempt's failure: of the newest pod of each index, what failed first."""
    newest = {pod.index: pod for pod in sorted(pods, key=lambda pod: pod.created)}
    causes = [cause for cause in map(of_pod, newest.values()) if cause is not None]
    return min(causes, key=lambda cause: cause.order, default=None)


def last_failure(pods: tuple[Pod, ...]) -> tuple[Cause, datetime] | None:
    """Return why the newest attempt that lost a pod did so, and when the last of its pods failed."""
    newest = {pod.index: pod for pod in sorted(pods, key=lambda pod: pod.created) if pod.phase == "Failed"}
    if not newest:
        return None
    began = max(pod.created for pod in newest.values())
    together = [pod for pod in newest.values() if failed_at(pod) >= began]
    causes = [cause for cause in map(of_pod, together) if cause is not None]
    return min(causes, key=lambda cause: cause.order), max(failed_at(pod) for pod in together)


def failed_at(pod: Pod) -> datetime:
    """When `pod` failed, as its node tells; when it was created, where nothing is told."""
    times = [container.finished for container in pod.containers.values() if container.finished is not None]
    disrupted = pod.conditions["DisruptionTarget"].time if pod.is_disrupted else None
    return max([*times, *([disrupted] if disrupted is not None else [])], default=pod.created)


def of_job(failure: Seen, pods: tuple[Pod, ...]) -> Cause:
    """Return why the job as a whole failed: the pods' own reason where they have one, else the Job controller's."""
    if failure.reason == "DeadlineExceeded":
        return Cause(Reason.DEADLINE_EXCEEDED, "the job ran longer than runPolicy.activeDeadlineSeconds allows.")
    cause = first_failure(pods)
    if cause is None or cause.reason in CONSEQUENCES:
        return cause or Cause(Reason.BACKOFF_LIMIT_EXCEEDED, f"{failure.reason}: {failure.message}")
    return cause


def of_waiting(pods: tuple[Pod, ...], now: datetime) -> Cause | None:
    """Return what keeps pods from starting, where a person has to mend it; None when they are only on their way."""
    causes = [cause for pod in pods for cause in (_unscheduled(pod), _waiting(pod), _unready(pod, now)) if cause is not None]
    return causes[0] if causes else None


def unready_since(pod: Pod) -> datetime | None:
    """Since when a pod is on its node and its volumes or its network are not ready; None when that is not so."""
    seen = pod.conditions.get("PodReadyToStartContainers")
    return seen.time if seen is not None and not seen.holds and not pod.stage.has_started else None


def _of_container(pod: Pod, container: Container) -> Cause:
    """Read the termination message; without one, tell what the exit code tells."""
    code, finished = container.exit_code, container.finished or NEVER
    left = TerminationMessage.parse(container.message)
    if left is not None:
        time = _moment(left.time, container)
        message, hint = (in_resource_spelling(printable(text)) for text in (left.message, left.hint))
        return Cause(left.reason, message, hint, code, time, rank=left.rank, log_tail=printable(left.log_tail))
    where = f"container {container.name} of pod {pod.name}"
    if container.exit_reason == "OOMKilled":
        message = f"{where} was killed because it needed more memory than its limit."
        return Cause(Reason.OUT_OF_MEMORY, message, exit_code=code, time=finished)
    if container.exit_reason in ("StartError", "ContainerCannotRun"):
        message = f"{where} could not be started: {printable(container.message)[:LONGEST_MESSAGE]}"
        return Cause(Reason.BAD_USAGE, message, "Check spec.image and spec.template.", code, finished)
    reason = REASON_OF_EXIT_CODE.get(ExitCode(code), Reason.TRAINER_FAILED) if code in list(ExitCode) else Reason.TRAINER_FAILED
    killed = " (killed by SIGKILL)" if code == SIGKILL_EXIT_CODE else ""
    message = f"{where} ended with exit code {code}{killed} and left no message."
    return Cause(reason, message, f"See its log: kubectl logs {pod.name} -c {container.name}.", code, finished)


def _moment(seconds: float, container: Container) -> datetime:
    """When a container says that it failed, if that can be: while it ran. Else when the kubelet says that it ended."""
    started, finished = container.started, container.finished
    if started is None or finished is None:
        return finished or NEVER
    can_be = started.timestamp() - 1 <= seconds <= finished.timestamp() + 1
    return datetime.fromtimestamp(seconds, UTC) if can_be else finished


def _unscheduled(pod: Pod) -> Cause | None:
    """The scheduler's message, when it finds no node."""
    seen = pod.conditions.get("PodScheduled")
    if seen is None or seen.holds or seen.reason != "Unschedulable":
        return None
    reason = Reason.VOLUME_MISSING if VOLUME_IN_MESSAGE.search(seen.message) else Reason.UNSCHEDULABLE
    return Cause(reason, f"pod {pod.name}: {seen.message}")


def _waiting(pod: Pod) -> Cause | None:
    """The kubelet's message, when it cannot start a container."""
    for container in (pod.stage, pod.trainer):
        text = f"pod {pod.name}: {container.waiting_message or container.waiting_reason}"[:LONGEST_MESSAGE]
        if container.waiting_reason in IMAGE_REASONS:
            return Cause(Reason.IMAGE_PULL_FAILED, text)
        if container.waiting_reason in CONFIGURATION_REASONS:
            reason = Reason.SECRET_MISSING if SECRET_IN_MESSAGE.search(container.waiting_message) else Reason.PODS_PENDING
            return Cause(reason, text)
    return None


def _unready(pod: Pod, now: datetime) -> Cause | None:
    """The kubelet tells what a volume lacks to an event of its own only; that one lacks something shows in the pod."""
    since = unready_since(pod)
    if since is None or now - since < READY_PATIENCE:
        return None
    text = f"pod {pod.name}: its volumes or its network have not been ready since {since:%Y-%m-%d %H:%M:%S} UTC"
    return Cause(Reason.VOLUME_MISSING, text, f"The kubelet says why: kubectl describe pod {pod.name}.")


def is_retried(cause: Cause, pods: tuple[Pod, ...], backoff_limit: int) -> bool:
    """Whether the Job controller tries again after `cause`: it is not final, and no index has used up its retries."""
    failures = max((sum(map(counts, group)) for group in _by_index(pods)), default=0)
    return cause.exit_code not in FINAL_EXIT_CODES and failures <= backoff_limit


def _by_index(pods: tuple[Pod, ...]) -> list[list[Pod]]:
    """The pods of each index, the oldest first."""
    groups: dict[int, list[Pod]] = {}
    for pod in sorted(pods, key=lambda pod: pod.created):
        groups.setdefault(pod.index, []).append(pod)
    return list(groups.values())


def counts(pod: Pod) -> bool:
    """Whether the Job controller counts `pod` as a failure."""
    return pod.phase == "Failed" and not pod.is_disrupted
