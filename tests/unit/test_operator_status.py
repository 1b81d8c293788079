"""The status is a function of what is seen."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.progress import Progress
from rewardfl_api.status import RewardFLJobStatus
from rewardfl_operator import status
from rewardfl_operator.causes import Cause
from rewardfl_operator.observed import Children
from tests.unit.operator_objects import (
    QUEUE_LABELS,
    START,
    at,
    children,
    condition,
    ended,
    find,
    job,
    kubernetes_job,
    pod,
    progress,
    running,
    training_pod,
    waiting,
)

NEW = RewardFLJobStatus()
NOW = START + timedelta(seconds=1000)


def derive(seen: Children, report: Progress | None = None, previous: RewardFLJobStatus = NEW, **spec: Any) -> RewardFLJobStatus:
    return status.derive(job(**spec), seen, report, previous, NOW)


def message(reason: Reason, text: str, code: int, seconds: float, hint: str = "") -> str:
    time = (START + timedelta(seconds=seconds)).timestamp()
    return json.dumps({"reason": reason, "message": text, "hint": hint, "exitCode": code, "rank": 0, "time": time})


def staging_pod(index: int) -> dict[str, Any]:
    return pod(index, running("stage", 5), waiting("trainer"), phase="Pending")


def test_a_job_without_children_is_pending() -> None:
    found = derive(Children())

    assert found.phase == "Pending"
    assert find(found, "Accepted").status == "True"
    assert find(found, "Running").reason == Reason.PODS_PENDING


def test_phases_follow_the_containers_and_then_the_report() -> None:
    created = pod(0, waiting("stage", "ContainerCreating"), waiting("trainer"), phase="Pending")
    trains = children(training_pod(0, 50), training_pod(1, 60))

    assert derive(children(created)).phase == "Pending"
    assert derive(children(staging_pod(0), staging_pod(1))).phase == "Staging"
    assert derive(children(training_pod(0, 50), staging_pod(1)), progress(55)).phase == "Staging"
    assert derive(trains).phase == "Preparing"
    assert derive(trains, progress(61)).phase == "Training"
    assert derive(trains, progress(62, phase="Saving")).phase == "Saving"


def test_training_shows_steps_reward_and_time_left() -> None:
    report = progress(100, step=12, total_steps=40, eta_seconds=4335, metrics={"reward": 0.61234, "loss": 0.1})

    found = derive(children(training_pod(0, 50), training_pod(1, 50)), report)

    assert (found.progress, found.percent, found.eta, found.reward) == ("12/40", 30, "1h12m", "0.612")
    assert found.metrics is not None
    assert found.metrics.loss == 0.1
    assert found.observed_generation == 3
    assert find(found, "Running").status == "True"
    assert find(found, "Staged").status == "True"


def test_a_report_from_before_a_restart_is_no_sign_of_life() -> None:
    before = derive(children(training_pod(0, 50), training_pod(1, 50)), progress(100, step=12, total_steps=40, eta_seconds=60))

    after = derive(children(training_pod(0, 200, created=150), training_pod(1, 200, created=150)), progress(100), before)

    assert (before.phase, before.eta) == ("Training", "1m")
    assert (after.phase, after.progress, after.eta) == ("Preparing", "12/40", None)


def test_success_keeps_the_last_report_and_says_when() -> None:
    done = kubernetes_job(condition("Complete"), succeeded=2, completionTime=at(500))
    report = progress(499, phase="Saving", step=40, total_steps=40, results={"lora": "s3://results/face/lora.safetensors"})

    found = derive(children(live=done), report)

    assert (found.phase, found.percent, found.progress) == ("Succeeded", 100, "40/40")
    assert found.results is not None
    assert found.results.lora == "s3://results/face/lora.safetensors"
    assert found.completion_time == START + timedelta(seconds=500)
    assert find(found, "Succeeded").status == "True"
    assert "Failed" not in [item.type for item in found.conditions]


def test_what_keeps_pods_from_being_made_is_said_until_they_are_there() -> None:
    obstacle = Cause(Reason.QUOTA_EXCEEDED, 'pods "face-0" is forbidden: exceeded quota: team')
    none = status.derive(job(), children(), None, NEW, NOW, obstacle)
    made = status.derive(job(), children(staging_pod(0), staging_pod(1)), None, none, NOW, obstacle)

    assert (none.phase, find(none, "Running").reason) == ("Pending", Reason.QUOTA_EXCEEDED)
    assert "exceeded quota: team. Wait until other pods end" in find(none, "Running").message
    assert (made.phase, find(made, "Running").reason) == ("Staging", Reason.STAGING)


def test_a_suspended_job_is_suspended_whatever_would_be_in_its_way() -> None:
    held = children(live=kubernetes_job(suspend=True))

    found = status.derive(job(runPolicy={"suspend": True}), held, None, NEW, NOW, Cause(Reason.QUOTA_EXCEEDED, "no room"))

    assert found.phase == "Suspended"


def test_a_finished_job_stays_as_it_is_when_its_pods_and_job_are_gone() -> None:
    finished = derive(children(live=kubernetes_job(condition("Complete"), succeeded=2, completionTime=at(500))))

    assert derive(Children(), None, finished) == finished


def test_failure_names_what_failed_first_and_the_remedy() -> None:
    first = message(Reason.NO_FACE_IN_FIRST_FRAME, "row 3: no face.", 65, 100, "Replace the video.")
    later = message(Reason.TERMINATED, "stopped by SIGTERM", 143, 90)
    failed = kubernetes_job(condition("Failed", reason="PodFailurePolicy", seconds=120), failed=2)
    pods = [
        pod(0, ended("stage", 0, 0, 50), ended("trainer", 143, 50, 102, later), phase="Failed"),
        pod(1, ended("stage", 0, 0, 50), ended("trainer", 65, 50, 101, first), phase="Failed"),
    ]

    found = derive(children(*pods, live=failed))

    assert found.phase == "Failed"
    assert find(found, "Failed").reason == Reason.NO_FACE_IN_FIRST_FRAME
    assert find(found, "Failed").message == "row 3: no face. Replace the video."
    assert found.restarts == 0


def test_a_decided_failure_is_shown_before_the_last_pod_has_gone() -> None:
    deciding = kubernetes_job(condition("FailureTarget", reason="PodFailurePolicy"))
    pods = [pod(0, ended("stage", 66, 0, 5, message(Reason.BUCKET_NOT_FOUND, "no bucket", 66, 5)), phase="Failed")]

    assert derive(children(*pods, live=deciding)).phase == "Failed"


@pytest.mark.parametrize(
    ("container", "reason", "text"),
    [
        (ended("trainer", 137, 1, 9, reason="OOMKilled"), Reason.OUT_OF_MEMORY, "more memory than its limit"),
        (ended("trainer", 137, 1, 9), Reason.TRAINER_FAILED, "exit code 137 (killed by SIGKILL)"),
        (ended("trainer", 1, 1, 9), Reason.TRAINER_FAILED, "kubectl logs face-0-0 -c trainer"),
        (ended("trainer", 65, 1, 9), Reason.BAD_DATASET, "exit code 65"),
        (ended("trainer", 128, 1, 9, "no such file", "StartError"), Reason.BAD_USAGE, "could not be started: no such file"),
        (ended("trainer", 1, 1, 9, '{"reason": "Nonsense"}'), Reason.TRAINER_FAILED, "exit code 1"),
    ],
)
def test_without_a_message_the_exit_code_tells(container: dict[str, Any], reason: Reason, text: str) -> None:
    failed = kubernetes_job(condition("Failed", reason="MaxFailedIndexesExceeded"))

    found = derive(children(pod(0, ended("stage", 0, 0, 1), container, phase="Failed"), live=failed))

    assert find(found, "Failed").reason == reason
    assert text in find(found, "Failed").message


def test_a_job_that_failed_without_a_pod_to_tell_why_has_the_job_controllers_words() -> None:
    failed = kubernetes_job(condition("Failed", reason="MaxFailedIndexesExceeded", message="Job has exceeded maxFailedIndexes"))

    found = find(derive(children(live=failed)), "Failed")

    assert found.reason == Reason.BACKOFF_LIMIT_EXCEEDED
    assert "Job has exceeded maxFailedIndexes. Mend the cause" in found.message


def test_the_deadline_is_named_whatever_the_pods_say() -> None:
    failed = kubernetes_job(condition("Failed", reason="DeadlineExceeded"))
    pods = [pod(0, ended("stage", 0, 0, 1), ended("trainer", 143, 1, 9), phase="Failed")]

    assert find(derive(children(*pods, live=failed)), "Failed").reason == Reason.DEADLINE_EXCEEDED


def test_a_failure_that_is_tried_again_is_a_restart_with_its_cause() -> None:
    lost = message(Reason.STORAGE_UNAVAILABLE, "the storage did not answer.", 69, 100)
    old = pod(0, ended("stage", 69, 1, 100, lost), waiting("trainer"), phase="Failed")
    new = pod(0, running("stage", 115), waiting("trainer"), phase="Pending", created=110)

    found = derive(children(old, new, staging_pod(1), live=kubernetes_job(failed=1, active=2)))

    assert found.phase == "Staging"
    assert find(found, "Running").status == "False"
    assert find(found, "Running").reason == Reason.RESTARTING
    assert "StorageUnavailable: the storage did not answer." in find(found, "Running").message
    assert not [item for item in found.conditions if item.type == "Failed"]
    assert found.restarts == 1


@pytest.mark.parametrize(("code", "backoff_limit"), [(69, 0), (65, 3)])
def test_a_failure_that_is_not_tried_again_is_no_restart_even_before_the_job_has_failed(code: int, backoff_limit: int) -> None:
    left = message(Reason.STORAGE_UNAVAILABLE, "no answer.", code, 100)
    before = derive(children(staging_pod(0), staging_pod(1)))
    failed = pod(0, ended("stage", code, 1, 100, left), waiting("trainer"), phase="Failed")

    found = derive(children(failed, staging_pod(1)), None, before, runPolicy={"backoffLimit": backoff_limit})

    assert (found.phase, find(found, "Running").reason) == ("Staging", Reason.STORAGE_UNAVAILABLE)
    assert "Starting again" not in find(found, "Running").message


def test_a_restart_is_over_once_the_gang_trains_again() -> None:
    old = pod(0, ended("stage", 0, 1, 10), ended("trainer", 1, 10, 100), phase="Failed")
    again = [training_pod(0, 130, created=110), training_pod(1, 130, created=110)]

    found = derive(children(old, *again), progress(140, step=1, total_steps=9))

    assert (found.phase, find(found, "Running").status, found.restarts) == ("Training", "True", 1)


def test_a_gang_that_fails_together_is_restarted_once() -> None:
    failures = [pod(index, ended("trainer", 1, 10, 100), phase="Failed") for index in range(2)]
    again = [training_pod(index, 130, created=110) for index in range(2)]

    lost = derive(children(*failures))
    renewed = derive(children(*failures, *again, live=kubernetes_job(failed=2)), None, lost)

    assert (lost.restarts, renewed.restarts, len(renewed.restart_history)) == (1, 1, 1)


def test_a_survivor_that_was_evicted_does_not_hide_why_its_peer_died() -> None:
    evicted = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting", seconds=101)
    culprit = pod(1, ended("stage", 0, 0, 10), ended("trainer", 137, 10, 100, reason="OOMKilled"), phase="Failed")
    survivor = pod(0, ended("stage", 0, 0, 10), ended("trainer", 143, 10, 130), phase="Failed", conditions=(evicted,))

    found = derive(children(culprit, survivor, live=kubernetes_job(failed=1)))

    assert find(found, "Running").reason == Reason.RESTARTING
    assert "OutOfMemory" in find(found, "Running").message


def test_a_disruption_is_no_restart_of_the_jobs_own_making() -> None:
    taken = condition("DisruptionTarget", reason="PreemptionByScheduler", message="preempted by urgent", seconds=100)
    old = pod(0, ended("trainer", 143, 10, 101), phase="Failed", conditions=(taken,))
    new = pod(0, running("stage", 115), waiting("trainer"), phase="Pending", created=110)

    found = derive(children(old, new, staging_pod(1)))

    assert find(found, "Running").reason == Reason.DISRUPTED
    assert found.restarts == 0


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (pod(0, waiting("stage", "ImagePullBackOff", "Back-off pulling image"), phase="Pending"), Reason.IMAGE_PULL_FAILED),
        (pod(0, waiting("stage", "CreateContainerConfigError", 'secret "s3" not found'), phase="Pending"), Reason.SECRET_MISSING),
        (
            pod(0, waiting("stage", "CreateContainerConfigError", "couldn't find key AWS_X in Secret team/s3"), phase="Pending"),
            Reason.SECRET_MISSING,
        ),
        (
            pod(0, phase="Pending", conditions=(condition("PodScheduled", "False", "Unschedulable", "0/3 nodes: no GPU"),)),
            Reason.UNSCHEDULABLE,
        ),
        (
            pod(
                0,
                phase="Pending",
                conditions=(condition("PodScheduled", "False", "Unschedulable", 'persistentvolumeclaim "m" not found'),),
            ),
            Reason.VOLUME_MISSING,
        ),
    ],
)
def test_what_keeps_pods_from_starting_is_said_with_its_remedy(trouble: dict[str, Any], reason: Reason) -> None:
    found = derive(children(trouble, staging_pod(1)))

    assert found.phase == "Pending"
    assert find(found, "Running").reason == reason
    assert find(found, "Running").message.startswith("pod face-0-0: ")


def test_a_volume_that_is_not_there_after_a_minute_is_worth_a_word_and_a_look() -> None:
    unready = condition("PodReadyToStartContainers", "False", seconds=100)
    bound = pod(0, waiting("stage", "PodInitializing"), waiting("trainer"), phase="Pending", conditions=(unready,))
    seen = children(bound, staging_pod(1))

    def after(seconds: float) -> RewardFLJobStatus:
        return status.derive(job(), seen, None, NEW, START + timedelta(seconds=100 + seconds))

    early, late = after(59), after(60)
    assert find(early, "Running").reason == Reason.STAGING
    assert status.look_again(early, seen, START + timedelta(seconds=159)) == 2.0
    assert (late.phase, find(late, "Running").reason) == ("Pending", Reason.VOLUME_MISSING)
    assert "kubectl describe pod face-0-0" in find(late, "Running").message
    assert status.look_again(late, seen, START + timedelta(seconds=161)) is None
    assert find(after(7200), "Running").message == find(late, "Running").message


def test_trouble_heals_by_itself() -> None:
    sick = derive(children(pod(0, waiting("stage", "ImagePullBackOff", "x"), phase="Pending"), staging_pod(1)))

    assert derive(children(staging_pod(0), staging_pod(1)), None, sick).phase == "Staging"


def queued_job(suspend: bool = True) -> dict[str, Any]:
    live = kubernetes_job(suspend=suspend)
    return {**live, "metadata": {**live["metadata"], "labels": QUEUE_LABELS}}


def test_suspended_and_queued_are_told_apart() -> None:
    held = children(live=kubernetes_job(suspend=True))

    suspended = derive(held, runPolicy={"suspend": True})
    queued = derive(children(live=queued_job()), labels=QUEUE_LABELS)

    assert (suspended.phase, find(suspended, "Suspended").status) == ("Suspended", "True")
    assert (queued.phase, find(queued, "Suspended").reason) == ("Queued", Reason.QUEUED)
    assert "gpus" in find(queued, "Suspended").message


def test_a_suspended_job_needs_no_kubernetes_job() -> None:
    held = derive(Children(), runPolicy={"suspend": True})

    assert (held.phase, find(held, "Suspended").reason) == ("Suspended", Reason.SUSPENDED)


def test_a_queued_job_shows_what_kueue_says_of_it() -> None:
    waits = replace(children(live=queued_job()), held_by="couldn't assign flavors to pod set main: insufficient quota for cpu")

    assert find(derive(waits, labels=QUEUE_LABELS), "Suspended").message == (
        "Waiting to be admitted by the queue gpus. couldn't assign flavors to pod set main: insufficient quota for cpu"
    )


def test_a_job_that_somebody_else_has_suspended_says_so() -> None:
    held = derive(children(live=kubernetes_job(suspend=True)))

    assert held.phase == "Suspended"
    assert "suspended by somebody else" in find(held, "Suspended").message


def test_the_checkpoint_that_pods_write_when_they_are_told_to_stop_counts_when_they_are_gone() -> None:
    trained = derive(children(training_pod(0, 10), training_pod(1, 10)), progress(20, step=7, total_steps=40))
    last = progress(30, step=9, total_steps=40, checkpoint={"step": 9, "uri": "s3://b/step-9", "time": at(30)})
    stopping = tuple(pod(index, running("trainer", 10), deleting=True) for index in (0, 1))

    ending = derive(children(*stopping, live=kubernetes_job(suspend=True)), None, trained, runPolicy={"suspend": True})
    gone = derive(children(live=kubernetes_job(suspend=True)), last, ending, runPolicy={"suspend": True})

    assert "2 pods are saving a checkpoint" in find(ending, "Suspended").message
    assert gone.checkpoint is not None
    assert (gone.phase, gone.step, gone.checkpoint.step) == ("Suspended", 9, 9)


def test_a_refused_spec_fails_until_it_is_edited() -> None:
    refused = status.refused(4, Reason.INVALID_SPEC, "nodes=0: must be at least 1", NEW, NOW)

    healed = derive(Children(), None, refused)

    assert (refused.phase, find(refused, "Accepted").status, find(refused, "Failed").status) == ("Failed", "False", "True")
    assert not status.is_final(refused)
    assert (healed.phase, find(healed, "Accepted").status) == ("Pending", "True")


def test_transition_times_change_only_with_the_status() -> None:
    first = derive(children(staging_pod(0), staging_pod(1)))
    later = status.derive(job(), children(training_pod(0, 9), training_pod(1, 9)), None, first, NOW + timedelta(seconds=60))

    assert find(later, "Accepted").last_transition_time == find(first, "Accepted").last_transition_time
    assert find(later, "Staged").last_transition_time == NOW + timedelta(seconds=60)


def test_the_same_observation_gives_the_same_status() -> None:
    seen = children(training_pod(0, 50), training_pod(1, 50))
    once = derive(seen, progress(100, step=1, total_steps=2))

    again = status.derive(job(), seen, progress(100, step=1, total_steps=2), once, NOW + timedelta(minutes=5))

    assert again == once
