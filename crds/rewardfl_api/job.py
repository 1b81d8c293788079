"""The RewardFLJob resource as a whole."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from .base import ApiModel
from .spec import RewardFLJobSpec
from .status import RewardFLJobStatus

GROUP = "rewardfl.io"
VERSION = "v1alpha1"
KIND = "RewardFLJob"
PLURAL = "rewardfljobs"
API_VERSION = f"{GROUP}/{VERSION}"

NAME_MAX_CHARACTERS = 52
"""Pod host names are `<job>-<index>`, labels hold 63 characters, and the children's suffixes need the rest."""


class ObjectMeta(BaseModel):
    """What is used of a Kubernetes object's metadata. Everything else in it is none of our business and is kept out."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: AwareDatetime | None = None
    deletion_timestamp: AwareDatetime | None = None


class RewardFLJob(ApiModel):
    """Reward Feedback Learning of a Wan2.2 video diffusion model: trains its LoRA to keep a person's face."""

    api_version: Annotated[Literal["rewardfl.io/v1alpha1"], Field(alias="apiVersion")] = "rewardfl.io/v1alpha1"
    kind: Literal["RewardFLJob"] = "RewardFLJob"
    metadata: ObjectMeta
    spec: RewardFLJobSpec
    """What is asked for."""
    status: RewardFLJobStatus | None = None
    """What is observed."""

    @classmethod
    def parse(cls, body: dict[str, Any]) -> "RewardFLJob":
        """Read a resource, its status left aside: a damaged status must not make a good spec unreadable.

        Raises:
            pydantic.ValidationError: the spec is not valid.
        """
        return cls.model_validate({**{key: body[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in body}})

    @property
    def config_name(self) -> str:
        """Name of the ConfigMap with the trainer's configuration."""
        return f"{self.metadata.name}-config"

    @property
    def progress_name(self) -> str:
        """Name of the ConfigMap that the trainer reports to."""
        return f"{self.metadata.name}-progress"
