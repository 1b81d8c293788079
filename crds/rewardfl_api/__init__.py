"""The RewardFLJob API: the one place where fields, ranges, defaults and their documentation are written.

For programs: `from rewardfl_api import Client, AsyncClient, RewardFLJob`, and the rest of `__all__`. Each is imported when it is
first asked for, since most programs need few of them; the clients need the extra `client`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.asynchronous import AsyncClient
    from .client.errors import ClientError, InvalidJobError, JobFailedError
    from .client.sync import Client
    from .client.view import Job
    from .errors import RewardFLError
    from .job import ObjectMeta, RewardFLJob
    from .metrics import StepMetrics
    from .spec import RewardFLJobSpec
    from .status import RewardFLJobStatus
    from .training import TrainingParameters

__version__ = "0.2.0"

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "InvalidJobError",
    "Job",
    "JobFailedError",
    "ObjectMeta",
    "RewardFLError",
    "RewardFLJob",
    "RewardFLJobSpec",
    "RewardFLJobStatus",
    "StepMetrics",
    "TrainingParameters",
]

_MODULES = {
    "AsyncClient": "client.asynchronous",
    "Client": "client.sync",
    "ClientError": "client.errors",
    "InvalidJobError": "client.errors",
    "Job": "client.view",
    "JobFailedError": "client.errors",
    "ObjectMeta": "job",
    "RewardFLError": "errors",
    "RewardFLJob": "job",
    "RewardFLJobSpec": "spec",
    "RewardFLJobStatus": "status",
    "StepMetrics": "metrics",
    "TrainingParameters": "training",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
