"""podPolicy: what a job's pod template may ask for. Restricted pods, unless the installation allows more.

Pure. The template that the chart adds to every job is trusted: only what a job's own template brings in beyond it is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .settings import PodPolicy

HOST_NAMESPACES = ("hostNetwork", "hostPID", "hostIPC")
OWN_CONTAINERS = ("stage", "trainer")
CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
OWN_KEYS = ("subdomain", "hostname", "hostnameOverride", "setHostnameAsFQDN", "activeDeadlineSeconds", "serviceAccount")
"""Fields that the pods' finding each other, or the Job controller, depends upon; the last is serviceAccountName's old name."""

HARMLESS_VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
"""The volume types of Kubernetes' restricted pod security standard. All others reach past the namespace, or run code."""

SECCOMP_PROFILES = ("RuntimeDefault", "Localhost")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
HOOKS = ("postStart", "preStop")
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
DEVICE_ANNOTATION = "cdi.k8s.io/"
"""Lets containerd and CRI-O hand host devices to a pod that has not asked for them as resources."""

SYSTEM_PRIORITY = "system-"
RESERVED_PREFIXES = ("rewardfl.io/", "batch.kubernetes.io/", "job-name", "controller-uid", "app.kubernetes.io/managed-by")
"""Labels that pods are found by."""


class TemplateError(ValueError):
    """A pod template that is refused; the message names field, value and remedy."""


@dataclass(frozen=True)
class Violation:
    """Something that a pod asks for and that needs permission."""

    field: str
    value: str
    allowed_by: str

    def __str__(self) -> str:
        return f"{self.field}={self.value}: not allowed; remove it, or let the operator's chart allow it with {self.allowed_by}"


def check_shape(template: dict[str, Any]) -> None:
    """Check that `template` is a partial pod template at all, and leaves alone what is the operator's.

    Raises:
        TemplateError: it is not.
    """
    for key, value in template.items():
        if key not in ("metadata", "spec"):
            raise TemplateError(f"template.{key}: unknown; a pod template has metadata and spec")
        if not isinstance(value, dict):
            raise TemplateError(f"template.{key}={value!r}: must be an object")
    metadata, spec = template.get("metadata", {}), template.get("spec", {})
    for key in metadata:
        if key not in ("labels", "annotations"):
            raise TemplateError(f"template.metadata.{key}: only labels and annotations can be set")
    for label in _dict(metadata.get("labels")):
        if label.startswith(RESERVED_PREFIXES):
            raise TemplateError(f"template.metadata.labels.{label}: reserved for the operator; use another label")
    for key in OWN_KEYS:
        if key in spec:
            raise TemplateError(f"template.spec.{key}: set by the operator; remove it")
    if "nodeName" in spec:
        raise TemplateError("template.spec.nodeName: passes the scheduler and its queue by; use nodeSelector or affinity")
    if spec.get("restartPolicy", "Never") != "Never":
        raise TemplateError(f"template.spec.restartPolicy={spec['restartPolicy']}: must be Never; set runPolicy.backoffLimit")
    for key in CONTAINER_LISTS:
        _check_containers(f"template.spec.{key}", spec.get(key, []))


def check_policy(baseline: dict[str, Any], merged: dict[str, Any], policy: PodPolicy, own_account: str) -> None:
    """Check that `merged` asks for nothing that needs permission, beyond what `baseline` asks for.

    Args:
        baseline: the pod template before the job's own template was merged.
        merged: the pod template after it.
        policy: what the installation allows.
        own_account: the job's own service account.

    Raises:
        TemplateError: it does; the message lists every such field.
    """
    trusted = set(violations(baseline, policy, own_account))
    found = [item for item in violations(merged, policy, own_account) if item not in trusted]
    if found:
        raise TemplateError("; ".join(str(item) for item in found))


def violations(template: dict[str, Any], policy: PodPolicy, own_account: str) -> Iterator[Violation]:
    """Yield everything in a whole pod template that `policy` does not allow."""
    spec = _dict(template.get("spec"))
    if not policy.allow_host_namespaces:
        yield from _host_namespaces(spec)
    if not policy.allow_host_path:
        yield from _host_paths(spec)
    if not policy.allow_privileged:
        yield from _privileges(spec)
        yield from _volume_types(spec)
        yield from _annotations(_dict(_dict(template.get("metadata")).get("annotations")))
    account = spec.get("serviceAccountName", own_account)
    if account != own_account and not {account, "*"} & set(policy.allowed_service_accounts):
        yield Violation("template.spec.serviceAccountName", str(account), "podPolicy.allowedServiceAccounts")


def _host_namespaces(spec: dict[str, Any]) -> Iterator[Violation]:
    permission = "podPolicy.allowHostNamespaces"
    for key in HOST_NAMESPACES:
        if spec.get(key):
            yield Violation(f"template.spec.{key}", _text(spec[key]), permission)
    for path, container in _containers(spec):
        for port in _list(container.get("ports")):
            if _dict(port).get("hostPort"):
                yield Violation(f"{path}.ports.hostPort", _text(port["hostPort"]), permission)
        yield from _foreign_hosts(path, container, permission)


def _foreign_hosts(path: str, container: dict[str, Any], permission: str) -> Iterator[Violation]:
    """Probes and hooks that name a host: the node's kubelet, in the node's own network, would call it."""
    lifecycle = _dict(container.get("lifecycle"))
    handlers = [(f"{path}.{key}", _dict(container.get(key))) for key in PROBES]
    handlers += [(f"{path}.lifecycle.{key}", _dict(lifecycle.get(key))) for key in HOOKS]
    for place, handler in handlers:
        for kind in ("httpGet", "tcpSocket"):
            host = _dict(handler.get(kind)).get("host")
            if host:
                yield Violation(f"{place}.{kind}.host", _text(host), permission)


def _host_paths(spec: dict[str, Any]) -> Iterator[Violation]:
    """hostPath volumes, and every mount of one: where the chart mounts a path of the node, a job may not mount it once more."""
    permission, names = "podPolicy.allowHostPath", set[str]()
    for volume in map(_dict, _list(spec.get("volumes"))):
        if volume.get("hostPath") is not None:
            names.add(str(volume.get("name")))
            path = _dict(volume["hostPath"]).get("path", "")
            yield Violation(f"template.spec.volumes[{volume.get('name')}].hostPath", _text(path), permission)
    for place, container in _containers(spec):
        for mount in map(_dict, _list(container.get("volumeMounts"))):
            if mount.get("name") in names:
                how = {key: mount[key] for key in sorted(mount) if key != "mountPath"}
                yield Violation(f"{place}.volumeMounts[{mount.get('mountPath')}]", _text(how), permission)


def _volume_types(spec: dict[str, Any]) -> Iterator[Violation]:
    for volume in map(_dict, _list(spec.get("volumes"))):
        for kind in volume:
            if kind not in ("name", "hostPath", *HARMLESS_VOLUMES):
                field = f"template.spec.volumes[{volume.get('name')}].{kind}"
                yield Violation(field, _text(volume[kind]), "podPolicy.allowPrivileged (or use a persistentVolumeClaim)")


def _annotations(annotations: dict[str, Any]) -> Iterator[Violation]:
    for key, value in annotations.items():
        unconfined = key.startswith(APPARMOR_ANNOTATION) and not _text(value).startswith(("runtime/default", "localhost/"))
        if unconfined or key.startswith(DEVICE_ANNOTATION):
            yield Violation(f"template.metadata.annotations.{key}", _text(value), "podPolicy.allowPrivileged")


def _privileges(spec: dict[str, Any]) -> Iterator[Violation]:
    """What Kubernetes' restricted pod security standard forbids, beside host namespaces and host paths; and the priority of
    what the cluster itself cannot do without, which would let a job drive that away."""
    permission = "podPolicy.allowPrivileged"
    pod = _dict(spec.get("securityContext"))
    path = "template.spec.securityContext"
    if pod.get("runAsNonRoot") is not True:
        yield Violation(f"{path}.runAsNonRoot", _text(pod.get("runAsNonRoot")), permission)
    if _dict(pod.get("seccompProfile")).get("type") not in SECCOMP_PROFILES:
        yield Violation(f"{path}.seccompProfile", _text(pod.get("seccompProfile")), permission)
    if pod.get("sysctls"):
        yield Violation(f"{path}.sysctls", _text(pod["sysctls"]), permission)
    priority = _text(spec.get("priorityClassName"))
    if priority.startswith(SYSTEM_PRIORITY):
        yield Violation("template.spec.priorityClassName", priority, permission)
    yield from _identity(path, pod, permission)
    for container_path, container in _containers(spec):
        yield from _container_privileges(f"{container_path}.securityContext", _dict(container.get("securityContext")), permission)


def _container_privileges(path: str, context: dict[str, Any], permission: str) -> Iterator[Violation]:
    capabilities = _dict(context.get("capabilities"))
    if context.get("privileged"):
        yield Violation(f"{path}.privileged", "true", permission)
    if context.get("allowPrivilegeEscalation") is not False:
        yield Violation(f"{path}.allowPrivilegeEscalation", _text(context.get("allowPrivilegeEscalation")), permission)
    if capabilities.get("add"):
        yield Violation(f"{path}.capabilities.add", _text(capabilities["add"]), permission)
    if "ALL" not in _list(capabilities.get("drop")):
        yield Violation(f"{path}.capabilities.drop", _text(capabilities.get("drop")), f"{permission} (or drop [ALL])")
    if context.get("procMount", "Default") != "Default":
        yield Violation(f"{path}.procMount", _text(context["procMount"]), permission)
    if context.get("runAsNonRoot") is False:
        yield Violation(f"{path}.runAsNonRoot", "false", permission)
    profile = context.get("seccompProfile")
    if profile is not None and _dict(profile).get("type") not in SECCOMP_PROFILES:
        yield Violation(f"{path}.seccompProfile", _text(_dict(profile).get("type")), permission)
    yield from _identity(path, context, permission)


def _identity(path: str, context: dict[str, Any], permission: str) -> Iterator[Violation]:
    """Settings that pods and containers have in common."""
    if context.get("runAsUser") == 0:
        yield Violation(f"{path}.runAsUser", "0", permission)
    if _dict(context.get("appArmorProfile")).get("type") == "Unconfined":
        yield Violation(f"{path}.appArmorProfile", "Unconfined", permission)
    for key in ("seLinuxOptions", "windowsOptions"):
        if context.get(key):
            yield Violation(f"{path}.{key}", _text(context[key]), permission)


def _containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in CONTAINER_LISTS:
        for container in _list(spec.get(key)):
            yield f"template.spec.{key}[{_dict(container).get('name')}]", _dict(container)


def _check_containers(path: str, containers: Any) -> None:
    if not isinstance(containers, list) or not all(isinstance(item, dict) and item.get("name") for item in containers):
        raise TemplateError(f"{path}: must be a list of containers, each with a name (trainer and stage are the operator's)")
    for container in containers:
        if container["name"] in OWN_CONTAINERS and container.get("restartPolicy") is not None:
            field = f"{path}[{container['name']}].restartPolicy={container['restartPolicy']}"
            raise TemplateError(f"{field}: this container runs once; set runPolicy.backoffLimit")


def _text(value: Any) -> str:
    return {True: "true", False: "false", None: "unset"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
