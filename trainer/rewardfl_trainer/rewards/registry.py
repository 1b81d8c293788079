"""From a reward's name in the configuration to the reward: one of ours, or a class given by its import path.

An import path runs code of the image: the module must be installed there. Nothing is fetched, no path is added to Python's,
and what is found must be a Reward. Must not score anything.
"""

import hashlib
import importlib
import inspect
import json
from typing import Any, TypeAlias

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import RewardSpec

from .base import Reward, RewardContext
from .face import FaceReward
from .temporal import TemporalConsistency

AnyReward: TypeAlias = Reward[Any, Any]
"""A reward, whatever its reference and result."""

REGISTERED: dict[str, type[AnyReward]] = {"face_identity": FaceReward, "temporal_consistency": TemporalConsistency}
"""The rewards that have a name (`rewardfl_api.training.KNOWN_REWARDS`)."""


def make_reward(spec: RewardSpec, context: RewardContext) -> AnyReward:
    """Return the reward that `spec` describes.

    Raises:
        RewardFLError: there is no such class, it is no Reward, or it refuses its options (BadConfiguration, exit code 78).
    """
    kind, options = find_class(spec.name), spec.options or {}
    if kind.create.__func__ is Reward.create.__func__:  # type: ignore[attr-defined]
        _check_arguments(spec, kind)
    try:
        return kind.create(context, options)
    except (TypeError, ValueError) as error:
        raise _bad(f"{spec.name}: options={options}: {error}", "Correct the options; docs/rewards.md lists them.") from error


def find_class(name: str) -> type[AnyReward]:
    """Return the class of a reward by its name or import path.

    Raises:
        RewardFLError: there is none, or it is no Reward (BadConfiguration, exit code 78).
    """
    if name in REGISTERED:
        return REGISTERED[name]
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        hint = "Install the module in the trainer image, and write its path as package.module:Class."
        raise _bad(f"{name}: cannot be imported: {error}", hint) from error
    if not (inspect.isclass(found) and issubclass(found, Reward)):
        raise _bad(f"{name}: is no rewardfl_trainer.rewards.base.Reward", "Derive the class from it; see docs/rewards.md.")
    missing = [*sorted(found.__abstractmethods__), *([] if hasattr(found, "reference_type") else ["reference_type"])]
    if missing:
        raise _bad(f"{name}: does not define {' and '.join(missing)}", "See docs/rewards.md.")
    return found


def label(name: str) -> str:
    """Return the name under which a reward is logged: package.module:FrameSharpness gives frame_sharpness."""
    class_name = name.rpartition(":")[2]
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in class_name).lstrip("_")


def identity(spec: RewardSpec) -> str:
    """Return a text that changes whenever the reward of `spec` may compute another reference: class, options, source."""
    module = inspect.getmodule(find_class(spec.name))
    source = inspect.getsource(module) if module is not None else ""
    digest = hashlib.sha256(source.encode()).hexdigest()
    return json.dumps([spec.name, spec.options or {}, digest], sort_keys=True)


def _check_arguments(spec: RewardSpec, kind: type[AnyReward]) -> None:
    """The options must be arguments of the class: a mistake in the class itself is not the configuration's."""
    try:
        inspect.signature(kind).bind(**(spec.options or {}))
    except TypeError as error:
        known = ", ".join(inspect.signature(kind).parameters) or "none"
        raise _bad(f"{spec.name}: options: {error}", f"It takes {known}.") from error


def _bad(problem: str, hint: str) -> RewardFLError:
    """Return the error of a reward that cannot be made."""
    return RewardFLError(Reason.BAD_CONFIGURATION, f"training.rewards: {problem}", hint, ExitCode.BAD_CONFIGURATION)
