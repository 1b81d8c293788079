"""Which of the API server's refusals say something of a job, and which pass."""

import pytest

from rewardfl_api.errors import Reason
from rewardfl_operator import resources
from rewardfl_operator.admission import is_waiting_for_pods, passing_refusal, pod_of
from rewardfl_operator.cluster import ApiError
from rewardfl_operator.observed import Children
from rewardfl_operator.settings import OperatorSettings, PodPolicy
from tests.unit.operator_objects import children, condition, ended, job, kubernetes_job, pod, training_pod

FORBIDDEN = 'pods "face-0-check" is forbidden: '


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (FORBIDDEN + "exceeded quota: gpus, requested: limits.nvidia.com/gpu=8, used: 8, limited: 8", Reason.QUOTA_EXCEEDED),
        (FORBIDDEN + "failed quota: team: must specify limits.memory for: trainer", Reason.QUOTA_EXCEEDED),
        (FORBIDDEN + 'violates PodSecurity "restricted:latest": privileged', Reason.ADMISSION_REFUSED),
        (FORBIDDEN + "no PriorityClass with name urgent was found", Reason.ADMISSION_REFUSED),
        ('admission webhook "policy.example.com" denied the request: no GPU on Fridays', Reason.ADMISSION_REFUSED),
    ],
)
def test_what_may_pass_is_told_in_the_api_servers_words(message: str, reason: Reason) -> None:
    found = passing_refusal(ApiError(403, message))

    assert found is not None
    assert (found.reason, found.message) == (reason, message)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            403,
            FORBIDDEN + 'User "system:serviceaccount:a:b" cannot create resource "pods" in API group "" in the namespace "team"',
        ),
        (403, 'jobs.batch "face" is forbidden: unable to create new content in namespace team because it is being terminated'),
        (403, FORBIDDEN + "status unknown for quota: team, resources: pods"),
        (429, "too many requests"),
        (500, "etcd has no leader"),
        (422, "invalid"),
    ],
)
def test_what_says_nothing_of_the_job_is_not_held_against_it(code: int, message: str) -> None:
    assert passing_refusal(ApiError(code, message)) is None


def test_pods_are_missing_only_where_the_job_controller_ought_to_make_them() -> None:
    both = children(training_pod(0, 5), training_pod(1, 5))
    one = children(training_pod(0, 5))

    assert is_waiting_for_pods(job(), one)
    assert not is_waiting_for_pods(job(), both)
    assert not is_waiting_for_pods(job(), Children())
    for over in (kubernetes_job(suspend=True), kubernetes_job(condition("Complete")), kubernetes_job(condition("Failed"))):
        assert not is_waiting_for_pods(job(), children(live=over))


def test_a_pod_that_has_ended_well_is_not_missing_and_one_that_failed_is() -> None:
    good = pod(1, ended("trainer", 0, 5, 10), phase="Succeeded")
    bad = pod(1, ended("trainer", 1, 5, 10), phase="Failed")

    assert not is_waiting_for_pods(job(), children(training_pod(0, 5), good))
    assert is_waiting_for_pods(job(), children(training_pod(0, 5), bad))


def test_the_pod_that_is_tried_is_the_jobs_but_for_its_account_which_may_not_be_there_yet() -> None:
    settings = OperatorSettings(pod_policy=PodPolicy(allowed_service_accounts=["other"]))
    template = {"spec": {"priorityClassName": "high"}}
    manifest = resources.indexed_job(job(template=template), settings)

    tried = pod_of(manifest, job(template=template))

    expected = {**manifest["spec"]["template"]["spec"], "serviceAccountName": "default"}
    assert (tried["spec"], tried["metadata"]["labels"]) == (expected, manifest["spec"]["template"]["metadata"]["labels"])
    foreign = job(template={"spec": {"serviceAccountName": "other"}})
    assert pod_of(resources.indexed_job(foreign, settings), foreign)["spec"]["serviceAccountName"] == "other"
