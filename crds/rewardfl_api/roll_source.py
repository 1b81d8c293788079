"""Reads a ROLL configuration: YAML in Hydra's form, with `${...}` references and dotted keys. Knows no parameter's meaning.

Hydra itself is not needed: of its `defaults` only the DeepSpeed presets matter, and those are known by name. A reference to a
preset that the file does not define stays as it is written.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from .deepspeed import DeepSpeedPreset
from .errors import ExitCode, Reason, RewardFLError

PRESETS: dict[str, DeepSpeedPreset] = {
    "deepspeed_zero": "zero0",
    "deepspeed_zero2": "zero2",
    "deepspeed_zero2_cpuoffload": "zero2_cpuoffload",
    "deepspeed_zero3": "zero3",
    "deepspeed_zero3_cpuoffload": "zero3_cpuoffload",
}
"""The names of ROLL's DeepSpeed files (examples/config)."""

REFERENCE = re.compile(r"\$\{([^${}]+)\}")
MAX_DEPTH = 20
"""References within references; more of them go round in a circle."""


def read(text: str) -> dict[str, Any]:
    """Return the configuration with dotted keys nested and references replaced by what they name.

    Raises:
        RewardFLError: not YAML, no mapping, a key given twice, or a reference to nothing (BadConfiguration, exit code 78).
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise bad(f"not YAML: {' '.join(str(error).split())}", "Give ROLL's configuration file.") from error
    if not isinstance(content, dict):
        raise bad("holds no parameters by name.", "Give ROLL's configuration file.")
    nested = _nest(content, "")
    resolved: dict[str, Any] = _resolve(nested, nested, 0)
    return resolved


def _nest(content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return the mapping with `a.b: value` as `a: {b: value}`."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        *parents, last = str(name).split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise bad(f"{where}{name}: {parent} is a value and a section at once.", "Write it once.")
        fresh = _nest(value, f"{where}{name}.") if isinstance(value, dict) else value
        _put(target, last, fresh, f"{where}{name}")
    return result


def _put(target: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Add a value to a section; two sections of the same name become one."""
    if name not in target:
        target[name] = value
    elif isinstance(target[name], dict) and isinstance(value, dict):
        for key, inner in value.items():
            _put(target[name], key, inner, f"{where}.{key}")
    else:
        raise bad(f"{where}: given twice.", "Write it once.")


def _resolve(value: Any, root: Mapping[str, Any], depth: int) -> Any:
    """Return `value` with its references replaced."""
    if depth > MAX_DEPTH:
        raise bad(f"{value!r}: a reference that leads back to itself.", "Write the value.")
    if isinstance(value, dict):
        return {key: _resolve(inner, root, depth) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(inner, root, depth) for inner in value]
    if not isinstance(value, str):
        return value
    whole = REFERENCE.fullmatch(value.strip())
    if whole is not None:
        return value if _is_preset(whole[1], root) else _resolve(_look_up(whole[1], root), root, depth + 1)
    replaced = REFERENCE.sub(lambda match: str(_look_up(match[1], root)), value)
    return replaced if replaced == value else _resolve(replaced, root, depth + 1)


def _is_preset(name: str, root: Mapping[str, Any]) -> bool:
    """Whether a reference means one of ROLL's DeepSpeed files, which the configuration does not hold itself."""
    return name.strip() in PRESETS and name.strip() not in root


def _look_up(name: str, root: Mapping[str, Any]) -> Any:
    """Return what a reference names."""
    value: Any = root
    for part in name.strip().split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = ", ".join(PRESETS)
            raise bad(f"${{{name}}}: there is no such key here.", f"Write the value. DeepSpeed presets that are known: {known}.")
        value = value[part]
    return value


def bad(message: str, hint: str) -> RewardFLError:
    """Return the error of a configuration that cannot be converted."""
    return RewardFLError(Reason.BAD_CONFIGURATION, message, hint, ExitCode.BAD_CONFIGURATION)
