"""A job's template gets restricted pods, unless the installation allows more."""

from typing import Any

import pytest

from rewardfl_operator.guard import TemplateError
from rewardfl_operator.pods import pod_template
from rewardfl_operator.settings import OperatorSettings, PodPolicy, TrainerSettings
from tests.unit.operator_objects import job

TRAINER: dict[str, Any] = {"name": "trainer"}


def container(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{**TRAINER, **fields}]}}


def security(**fields: Any) -> dict[str, Any]:
    return container(securityContext=fields)


FORBIDDEN = {
    "template.spec.hostNetwork=true": {"spec": {"hostNetwork": True}},
    "template.spec.hostPID=true": {"spec": {"hostPID": True}},
    "template.spec.hostIPC=true": {"spec": {"hostIPC": True}},
    "template.spec.containers[trainer].ports.hostPort=80": container(ports=[{"containerPort": 80, "hostPort": 80}]),
    "template.spec.volumes[x].hostPath=/etc": {"spec": {"volumes": [{"name": "x", "hostPath": {"path": "/etc"}}]}},
    "template.spec.serviceAccountName=admin": {"spec": {"serviceAccountName": "admin"}},
    "template.spec.securityContext.runAsNonRoot=false": {"spec": {"securityContext": {"runAsNonRoot": False}}},
    "template.spec.securityContext.runAsNonRoot=unset": {"spec": {"securityContext": None}},
    "template.spec.securityContext.runAsUser=0": {"spec": {"securityContext": {"runAsUser": 0}}},
    "template.spec.securityContext.sysctls": {"spec": {"securityContext": {"sysctls": [{"name": "a", "value": "1"}]}}},
    "template.spec.containers[trainer].securityContext.privileged=true": security(privileged=True),
    "template.spec.containers[trainer].securityContext.allowPrivilegeEscalation=true": security(allowPrivilegeEscalation=True),
    "template.spec.containers[trainer].securityContext.capabilities.add": security(capabilities={"add": ["SYS_ADMIN"]}),
    "template.spec.containers[trainer].securityContext.capabilities.drop=unset": security(capabilities=None),
    "template.spec.containers[trainer].securityContext.procMount=Unmasked": security(procMount="Unmasked"),
    "template.spec.containers[trainer].securityContext.seccompProfile=Unconfined": security(
        seccompProfile={"type": "Unconfined"}
    ),
    "template.spec.containers[helper].securityContext.allowPrivilegeEscalation=unset": {
        "spec": {"containers": [{"name": "helper", "image": "x"}]}
    },
    "template.spec.initContainers[stage].securityContext.privileged=true": {
        "spec": {"initContainers": [{"name": "stage", "securityContext": {"privileged": True}}]}
    },
}


@pytest.mark.parametrize("field", FORBIDDEN)
def test_what_restricted_pods_may_not_do_is_refused_by_field_and_value(field: str) -> None:
    with pytest.raises(TemplateError) as error:
        pod_template(job(template=FORBIDDEN[field]), OperatorSettings())

    assert field in str(error.value)
    assert "podPolicy." in str(error.value) or "serviceAccountName" in str(error.value)


@pytest.mark.parametrize("field", FORBIDDEN)
def test_everything_is_accepted_once_the_chart_allows_it(field: str) -> None:
    allowed = ["*"]
    policy = PodPolicy(allow_host_path=True, allow_host_namespaces=True, allow_privileged=True, allowed_service_accounts=allowed)
    assert pod_template(job(template=FORBIDDEN[field]), OperatorSettings(pod_policy=policy))


MALFORMED = {
    "template.spec.serviceAccount: set by the operator": {"spec": {"serviceAccount": "admin"}},
    "template.status: unknown": {"status": {}},
    "template.spec=[]: must be an object": {"spec": []},
    "template.metadata.name: only labels and annotations": {"metadata": {"name": "x"}},
    "template.metadata.labels.rewardfl.io/job-name: reserved": {"metadata": {"labels": {"rewardfl.io/job-name": "other"}}},
    "template.spec.subdomain: set by the operator": {"spec": {"subdomain": "x"}},
    "template.spec.restartPolicy=Always: must be Never": {"spec": {"restartPolicy": "Always"}},
    "template.spec.containers: must be a list of containers, each with a name": {"spec": {"containers": [{"image": "x"}]}},
}


@pytest.mark.parametrize("message", MALFORMED)
def test_what_is_no_partial_pod_template_is_refused(message: str) -> None:
    with pytest.raises(TemplateError) as error:
        pod_template(job(template=MALFORMED[message]), OperatorSettings())

    assert message in str(error.value)


def test_the_charts_own_template_is_trusted_and_the_jobs_is_not() -> None:
    mounted = {"spec": {"volumes": [{"name": "machine", "hostPath": {"path": "/usr"}}]}}
    settings = OperatorSettings(trainer=TrainerSettings(pod_template=mounted))

    assert pod_template(job(), settings)["spec"]["volumes"][-1] == mounted["spec"]["volumes"][0]
    with pytest.raises(TemplateError, match=r"volumes\[machine\].hostPath=/etc"):
        pod_template(job(template={"spec": {"volumes": [{"name": "machine", "hostPath": {"path": "/etc"}}]}}), settings)


def test_a_host_path_cache_needs_permission() -> None:
    with pytest.raises(TemplateError, match=r"cache.hostPath=/models: not allowed; .*podPolicy.allowHostPath"):
        pod_template(job(cache={"hostPath": "/models"}), OperatorSettings())

    allowed = OperatorSettings(pod_policy=PodPolicy(allow_host_path=True))
    volumes = pod_template(job(cache={"hostPath": "/models"}), allowed)["spec"]["volumes"]
    assert {"name": "cache", "hostPath": {"path": "/models", "type": "DirectoryOrCreate"}} in volumes


def test_ordinary_templates_are_merged() -> None:
    template = {
        "metadata": {"labels": {"team": "vision"}},
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "containers": [{"name": "trainer", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}],
        },
    }

    merged = pod_template(job(template=template), OperatorSettings())

    assert merged["metadata"]["labels"]["team"] == "vision"
    assert merged["spec"]["nodeSelector"] == {"gpu": "h100"}
    trainer = merged["spec"]["containers"][0]
    assert trainer["command"] == ["python", "-m", "rewardfl_trainer.launch"]
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in trainer["env"]
