"""Names and labels of what the operator makes: the one place where they are written."""

from rewardfl_api.job import GROUP, RewardFLJob

FIELD_MANAGER = "rewardfl-operator"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
JOB_LABEL = f"{GROUP}/job-name"
PART_LABEL = f"{GROUP}/part"
PROGRESS_PART = "progress"
SHAPE_ANNOTATION = f"{GROUP}/shape"
"""Hash of the fields of the spec that a Kubernetes Job cannot take over once it was made."""

APPLIED_ANNOTATION = f"{GROUP}/applied"
"""Hash of the manifest that an object was made from."""

GENERATION_ANNOTATION = f"{GROUP}/generation"
"""Generation of the RewardFLJob that a Kubernetes Job was made from."""

ASKED_ANNOTATION = f"{GROUP}/asked"
"""What the operator has last asked of the fields of a Kubernetes Job that it shares with others."""

TRIP_ANNOTATION = f"{GROUP}/guard-tripped"
"""Of a RewardFLJob: for which broken rule of its guard, by its time, the operator has suspended it."""

RELEASED_ANNOTATION = f"{GROUP}/released"
"""What an operator that was uninstalled has changed in a Kubernetes Job that goes on without it."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
QUEUE_LABELS = (QUEUE_LABEL, PRIORITY_LABEL)
COMPLETION_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
CHILD_SELECTOR = f"{MANAGED_BY_LABEL}={FIELD_MANAGER},{JOB_LABEL}"
"""Both labels: an object that loses either leaves the informers, and is looked at again."""

PROGRESS_SELECTOR = f"{CHILD_SELECTOR},{PART_LABEL}={PROGRESS_PART}"
CONFIG_SELECTOR = f"{CHILD_SELECTOR},{PART_LABEL}!={PROGRESS_PART}"


def labels(job: RewardFLJob) -> dict[str, str]:
    """Labels of every object and pod of `job`."""
    return {
        "app.kubernetes.io/name": "rewardfl-trainer",
        "app.kubernetes.io/instance": job.metadata.name,
        "app.kubernetes.io/part-of": "rewardfl",
        MANAGED_BY_LABEL: FIELD_MANAGER,
        JOB_LABEL: job.metadata.name,
    }


def service_name(job: RewardFLJob) -> str:
    """The headless Service through which the pods find each other."""
    return job.metadata.name


def service_account_name(job: RewardFLJob) -> str:
    """The service account, Role and RoleBinding that let pods report progress."""
    return f"{job.metadata.name}-trainer"


def queue_labels(job: RewardFLJob) -> dict[str, str]:
    """Kueue's labels, which go from the RewardFLJob to the Kubernetes Job."""
    return {key: job.metadata.labels[key] for key in QUEUE_LABELS if key in job.metadata.labels}
