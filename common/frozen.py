"""The base of every settings and file-content model."""

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A pydantic model that cannot change after it is made and that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
