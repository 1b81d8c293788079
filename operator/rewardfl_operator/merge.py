"""Merges a partial pod template into a whole one, as `kubectl patch` would: lists of named things are merged by name.

Pure. It does not judge what is merged (guard.py does).
"""

from copy import deepcopy
from typing import Any

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
"""Lists whose elements are merged by this field (the patchMergeKey of Kubernetes' PodSpec). Other lists are replaced."""

REPLACED_ELEMENTS = ("volumes", "env")
"""Lists whose elements have exactly one source: a new one takes the place of the old instead of standing beside it."""

APPENDED = ("envFrom", "tolerations")
"""Lists of nameless things that add up: a job's tolerations do not undo the cluster's."""


def merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `patch` merged in. None removes a field. Neither argument is changed."""
    merged = deepcopy(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = merge(_dict(merged.get(key)), value)
        elif isinstance(value, list):
            merged[key] = _merge_list(key, merged.get(key), value)
        else:
            merged[key] = value
    return merged


def _merge_list(key: str, base: Any, patch: list[Any]) -> list[Any]:
    """Merge by name, append, or replace: whichever fits the list called `key`."""
    old = deepcopy(base) if isinstance(base, list) else []
    name = MERGE_KEYS.get(key)
    if name is not None and all(isinstance(item, dict) and name in item for item in patch):
        return _merge_named(key, name, old, patch)
    if key in APPENDED:
        return old + [deepcopy(item) for item in patch if item not in old]
    return deepcopy(patch)


def _merge_named(key: str, name: str, base: list[Any], patch: list[dict[str, Any]]) -> list[Any]:
    """Merge elements that have the same name, and append the new ones."""
    merged = {item[name]: item for item in base}
    for item in patch:
        old = {} if key in REPLACED_ELEMENTS else merged.get(item[name], {})
        merged[item[name]] = merge(old, item)
    return list(merged.values())


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
