"""What the operator makes for a job, as data."""

from typing import Any

import pytest
import yaml

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_operator import resources
from rewardfl_operator.settings import NetworkPolicySettings, OperatorSettings, TrainerSettings
from tests.unit.operator_objects import QUEUE_LABELS, UID, job

SETTINGS = OperatorSettings()


def by_kind(**spec: Any) -> dict[str, dict[str, Any]]:
    found = [*resources.supporting_objects(job(**spec), SETTINGS), resources.indexed_job(job(**spec), SETTINGS)]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def pod_spec(**spec: Any) -> dict[str, Any]:
    return dict(resources.indexed_job(job(**spec), SETTINGS)["spec"]["template"]["spec"])


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_every_object_belongs_to_the_job_and_is_found_by_its_label() -> None:
    for name, item in by_kind().items():
        owner = item["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("RewardFLJob", "face", UID, True), name
        assert item["metadata"]["labels"]["rewardfl.io/job-name"] == "face"
        assert item["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "rewardfl-operator"
        assert item["metadata"]["namespace"] == "team"


def test_the_objects_are_these() -> None:
    assert sorted(by_kind()) == [
        "ConfigMap/face-config",
        "ConfigMap/face-progress",
        "Job/face",
        "NetworkPolicy/face",
        "Role/face-trainer",
        "RoleBinding/face-trainer",
        "Service/face",
        "ServiceAccount/face-trainer",
    ]


def test_the_trainer_reads_back_its_configuration() -> None:
    text = by_kind(training={"learningRate": 1e-4})["ConfigMap/face-config"]["data"]["config.yaml"]

    config = TrainerConfig.model_validate(yaml.safe_load(text))

    assert config == TrainerConfig.from_job(job(training={"learningRate": 1e-4}))
    assert config.progress is not None
    assert (config.progress.namespace, config.progress.config_map) == ("team", "face-progress")


def test_applying_the_progress_config_map_leaves_reports_alone() -> None:
    assert "data" not in by_kind()["ConfigMap/face-progress"]


def test_pods_may_read_and_patch_their_own_progress_and_nothing_else() -> None:
    rules = by_kind()["Role/face-trainer"]["rules"]

    assert rules == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["face-progress"], "verbs": ["get", "patch"]}
    ]


def test_only_the_jobs_own_pods_are_let_in() -> None:
    pods = {"matchLabels": {"rewardfl.io/job-name": "face"}}
    spec = by_kind()["NetworkPolicy/face"]["spec"]

    assert spec == {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": pods}]}]}


def test_the_network_policy_can_be_switched_off() -> None:
    settings = OperatorSettings(network_policy=NetworkPolicySettings(per_job=False))

    assert "NetworkPolicy" not in [item["kind"] for item in resources.supporting_objects(job(), settings)]


def test_names_resolve_before_pods_are_ready() -> None:
    spec = by_kind()["Service/face"]["spec"]

    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True


def test_the_indexed_job_runs_one_pod_a_node_and_fails_as_a_gang() -> None:
    spec = by_kind(nodes=4, runPolicy={"backoffLimit": 5, "activeDeadlineSeconds": 60})["Job/face"]["spec"]

    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (5, 0)
    assert spec["activeDeadlineSeconds"] == 60
    assert spec["suspend"] is False


def test_retries_of_a_single_pod_are_counted_plainly() -> None:
    spec = by_kind(nodes=1, runPolicy={"backoffLimit": 5})["Job/face"]["spec"]

    assert spec["backoffLimit"] == 5
    assert "backoffLimitPerIndex" not in spec


def test_final_exit_codes_end_the_job_and_disruptions_are_not_counted() -> None:
    rules = by_kind()["Job/face"]["spec"]["podFailurePolicy"]["rules"]

    codes = [(rule["action"], rule["onExitCodes"]["containerName"], rule["onExitCodes"]["values"]) for rule in rules[:2]]
    assert codes == [("FailJob", "stage", [64, 65, 66, 78]), ("FailJob", "trainer", [64, 65, 66, 78])]
    assert rules[2] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_a_queued_job_is_made_suspended_with_the_queues_labels() -> None:
    queued = job(labels=QUEUE_LABELS)
    manifest = resources.indexed_job(queued, SETTINGS)

    assert manifest["metadata"]["labels"].items() >= QUEUE_LABELS.items()
    assert manifest["spec"]["suspend"] is True


def test_torchrun_is_told_how_the_pods_meet() -> None:
    variables = environment(pod_spec(nodes=2, processesPerNode=3)["containers"][0])

    assert variables["PET_NNODES"] == "2"
    assert variables["PET_NPROC_PER_NODE"] == "3"
    assert variables["PET_RDZV_ENDPOINT"] == "face-0.face:29400"
    assert variables["PET_RDZV_ID"] == UID
    assert variables["PET_MAX_RESTARTS"] == "0"
    assert "join_timeout=7200" in variables["PET_RDZV_CONF"]


def test_ranks_have_most_of_the_grace_period_to_save() -> None:
    spec = pod_spec()

    assert 0 < spec["terminationGracePeriodSeconds"] - int(environment(spec["containers"][0])["PET_SHUTDOWN_TIMEOUT"]) <= 30


@pytest.mark.parametrize(("asked", "grace", "shutdown"), [(3600, 3600, 3580), (30, 30, 27), (1, 1, 1), (None, 30, 27)])
def test_torchrun_and_trainer_keep_to_the_templates_grace_period(asked: int | None, grace: int, shutdown: int) -> None:
    spec = pod_spec(template={"spec": {"terminationGracePeriodSeconds": asked}})

    variables = environment(spec["containers"][0])
    assert spec.get("terminationGracePeriodSeconds", 30) == grace
    assert (variables["PET_SHUTDOWN_TIMEOUT"], variables["REWARDFL_GRACE_PERIOD_SECONDS"]) == (str(shutdown), str(grace))


def test_the_job_s_template_wins_over_the_installation_s_in_the_grace_period_too() -> None:
    settings = OperatorSettings(trainer=TrainerSettings(pod_template={"spec": {"terminationGracePeriodSeconds": 60}}))

    def variable(**spec: Any) -> str:
        template = resources.indexed_job(job(**spec), settings)["spec"]["template"]["spec"]
        return str(environment(template["containers"][0])["REWARDFL_GRACE_PERIOD_SECONDS"])

    assert variable() == "60"
    assert variable(template={"spec": {"terminationGracePeriodSeconds": 90}}) == "90"


def test_gpus_are_asked_for_by_the_configured_name() -> None:
    settings = OperatorSettings(trainer=TrainerSettings(gpu_resource_name="amd.com/gpu"))
    manifest = resources.indexed_job(job(gpusPerNode=8), settings)

    containers = manifest["spec"]["template"]["spec"]
    assert containers["containers"][0]["resources"] == {"limits": {"amd.com/gpu": "8"}}
    assert "resources" not in containers["initContainers"][0]


def test_cpu_jobs_ask_for_no_gpu() -> None:
    assert "resources" not in pod_spec()["containers"][0]


def test_credentials_are_referred_to_and_never_copied() -> None:
    spec = pod_spec(storage={"endpoint": "http://s3.example.com", "credentialsSecretName": "s3"})

    for container in (*spec["initContainers"], *spec["containers"]):
        variables = environment(container)
        assert variables["AWS_ACCESS_KEY_ID"] == {"secretKeyRef": {"name": "s3", "key": "AWS_ACCESS_KEY_ID"}}
        assert variables["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"}}
        assert variables["AWS_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True


def test_without_a_secret_the_pods_use_their_own_identity() -> None:
    assert not any(name.startswith("AWS_") for name in environment(pod_spec()["containers"][0]))


def test_pods_are_restricted() -> None:
    spec = pod_spec()

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["terminationMessagePolicy"] == "File"


def test_the_cache_is_the_volume_that_was_asked_for() -> None:
    def cache(**spec: Any) -> Any:
        return next(volume for volume in pod_spec(**spec)["volumes"] if volume["name"] == "cache")

    assert cache() == {"name": "cache", "emptyDir": {}}
    assert cache(cache={"emptyDir": {"sizeLimit": "200Gi"}}) == {"name": "cache", "emptyDir": {"sizeLimit": "200Gi"}}
    assert cache(cache={"persistentVolumeClaim": "models"})["persistentVolumeClaim"] == {"claimName": "models"}


def test_shared_memory_is_memory() -> None:
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod_spec()["volumes"]


def test_the_image_is_the_jobs_or_the_installations() -> None:
    settings = OperatorSettings(trainer=TrainerSettings(image="trainer:1"))

    def image(**spec: Any) -> str:
        return str(resources.indexed_job(job(**spec), settings)["spec"]["template"]["spec"]["containers"][0]["image"])

    assert image() == "trainer:1"
    assert image(image="mine:2") == "mine:2"


def test_the_shape_changes_with_what_a_job_cannot_take_over_and_with_nothing_else() -> None:
    for change in (
        {"nodes": 3},
        {"training": {"seed": 1}},
        {"deepspeed": {"preset": "zero3"}},
        {"runPolicy": {"backoffLimit": 9}},
    ):
        assert resources.shape(job(**change)) != resources.shape(job()), change
    kept: list[dict[str, Any]] = [{"suspend": True}, {"activeDeadlineSeconds": 9}, {"ttlSecondsAfterFinished": 9}]
    for policy in kept:
        assert resources.shape(job(runPolicy=policy)) == resources.shape(job()), policy


def test_the_shape_does_not_know_fields_that_are_at_their_default() -> None:
    """A later version adds fields, and the API server fills them in; that must not look like an edit."""
    filled = job().model_copy(update={"spec": type(job().spec).model_validate(job().spec.to_kubernetes())})

    assert resources.shape(filled) == resources.shape(job())
