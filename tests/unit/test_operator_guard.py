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
    "template.spec.containers[trainer].securityContext.seccompProfile=unset": security(seccompProfile={}),
    "template.spec.containers[trainer].securityContext.runAsNonRoot=false": security(runAsNonRoot=False),
    "template.spec.containers[trainer].securityContext.runAsUser=0": security(runAsUser=0),
    "template.spec.containers[trainer].securityContext.appArmorProfile=Unconfined": security(
        appArmorProfile={"type": "Unconfined"}
    ),
    "template.spec.containers[trainer].securityContext.seLinuxOptions": security(seLinuxOptions={"type": "spc_t"}),
    "template.spec.containers[trainer].securityContext.windowsOptions": security(windowsOptions={"hostProcess": True}),
    "template.spec.containers[trainer].livenessProbe.httpGet.host=169.254.169.254": container(
        livenessProbe={"httpGet": {"host": "169.254.169.254", "port": 80}}
    ),
    "template.spec.containers[trainer].lifecycle.postStart.tcpSocket.host=10.0.0.1": container(
        lifecycle={"postStart": {"tcpSocket": {"host": "10.0.0.1", "port": 2379}}}
    ),
    "template.spec.priorityClassName=system-node-critical": {"spec": {"priorityClassName": "system-node-critical"}},
    "template.metadata.annotations.container.apparmor.security.beta.kubernetes.io/trainer=unconfined": {
        "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}
    },
    "template.metadata.annotations.cdi.k8s.io/all=nvidia.com/gpu=all": {
        "metadata": {"annotations": {"cdi.k8s.io/all": "nvidia.com/gpu=all"}}
    },
    **{
        f"template.spec.volumes[work].{kind}": {"spec": {"volumes": [{"name": "work", kind: {"server": "10.0.0.1"}}]}}
        for kind in ("nfs", "iscsi", "gitRepo", "flexVolume", "rbd", "cephfs", "fc", "glusterfs", "awsElasticBlockStore", "image")
    },
    "template.spec.ephemeralContainers[debug].securityContext.allowPrivilegeEscalation=unset": {
        "spec": {"ephemeralContainers": [{"name": "debug", "image": "x"}]}
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
    "template.spec.hostnameOverride: set by the operator": {"spec": {"hostnameOverride": "x"}},
    "template.spec.nodeName: passes the scheduler": {"spec": {"nodeName": "control-plane-1"}},
    "template.spec.containers: must be a list": {"spec": {"containers": None}},
    "template.spec.initContainers[stage].restartPolicy=Always: this container runs once": {
        "spec": {"initContainers": [{"name": "stage", "restartPolicy": "Always"}]}
    },
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


def test_a_path_of_the_node_that_the_chart_mounts_is_not_mounted_once_more_by_a_job() -> None:
    mounted = {
        "spec": {
            "volumes": [{"name": "machine", "hostPath": {"path": "/usr"}}],
            "containers": [{**TRAINER, "volumeMounts": [{"name": "machine", "mountPath": "/usr", "readOnly": True}]}],
        }
    }
    settings = OperatorSettings(trainer=TrainerSettings(pod_template=mounted))

    assert pod_template(job(template={"spec": {"nodeSelector": {"a": "b"}}}), settings)
    for mount in ({"mountPath": "/usr", "name": "machine", "readOnly": False}, {"mountPath": "/x", "name": "machine"}):
        with pytest.raises(TemplateError, match=r"containers\[trainer\].volumeMounts.*podPolicy.allowHostPath"):
            pod_template(job(template=container(volumeMounts=[mount])), settings)


HARMLESS: dict[str, dict[str, Any]] = {
    "configMap": {"name": "c"},
    "csi": {"driver": "secrets-store.csi.k8s.io"},
    "downwardAPI": {"items": []},
    "emptyDir": {},
    "ephemeral": {"volumeClaimTemplate": {}},
    "persistentVolumeClaim": {"claimName": "c"},
    "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]},
    "secret": {"secretName": "s"},
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_volumes_of_the_restricted_standard_need_no_permission(kind: str) -> None:
    template = {"spec": {"volumes": [{"name": "more", kind: HARMLESS[kind]}]}}

    assert {"name": "more", kind: HARMLESS[kind]} in pod_template(job(template=template), OperatorSettings())["spec"]["volumes"]


def test_what_training_needs_is_allowed_without_permission() -> None:
    template: dict[str, Any] = {
        "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "runtime/default"}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
            "schedulerName": "volcano",
            "shareProcessNamespace": True,
            "initContainers": [
                {
                    "name": "proxy",
                    "image": "x",
                    "restartPolicy": "Always",
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
            "containers": [{**TRAINER, "command": ["sh"], "livenessProbe": {"httpGet": {"port": 80, "path": "/"}}}],
        },
    }

    assert pod_template(job(template=template), OperatorSettings())
