"""Merges a partial pod template into a whole one, as `kubectl patch` would: lists of named things are merged by name.

Pure. It does not judge what is merged (guard.py does).
"""

from copy import deepcopy
from typing import Any

MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
}
"""Lists whose elements are merged by these fields (the list map keys of Kubernetes' PodSpec). Other lists are replaced."""

KEY_DEFAULTS = {"protocol": "TCP", "whenUnsatisfiable": "DoNotSchedule"}
"""What a key field means when it is left out."""

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
    names = MERGE_KEYS.get(key)
    if names is not None and all(isinstance(item, dict) and names[0] in item for item in [*old, *patch]):
        return _merge_named(key, names, old, patch)
    if key in APPENDED:
        return old + [deepcopy(item) for item in patch if item not in old]
    return deepcopy(patch)


def _merge_named(key: str, names: tuple[str, ...], base: list[Any], patch: list[dict[str, Any]]) -> list[Any]:
    """Merge elements that have the same name in place, and append the new ones in their own order."""
    merged = {_identity(item, names): item for item in base}
    for item in patch:
        identity = _identity(item, names)
        old = {} if key in REPLACED_ELEMENTS else merged.get(identity, {})
        merged[identity] = merge(old, item)
    return list(merged.values())


def _identity(item: dict[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """What an element is known by. As text, since a person may have written anything there; the API server judges it."""
    return tuple(str(item.get(name, KEY_DEFAULTS.get(name))) for name in names)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
