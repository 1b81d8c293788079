"""The base of every API model: camelCase on the outside, snake_case inside, nothing unknown accepted.

The Kubernetes resource is written in camelCase, the trainer's own configuration in the snake_case names of the
Reward FL document; one set of models reads and writes both.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A part of the API: unknown fields are refused, both spellings are read."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        defer_build=True,  # most programs use a few of the models; building all would be a tenth of their start
        validate_default=True,
        allow_inf_nan=False,
    )

    def to_kubernetes(self) -> dict[str, Any]:
        """Return the JSON form that Kubernetes stores: camelCase, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_trainer(self) -> dict[str, Any]:
        """Return the JSON form of the trainer's configuration file: snake_case, nothing left out."""
        return self.model_dump(mode="json", by_alias=False)

    def copy_with(self, **changes: Any) -> Self:
        """Return a validated copy with `changes` (snake_case names) applied."""
        return self.model_validate({**self.model_dump(by_alias=False), **changes})
