"""What all parts of the results of an evaluation have in common."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A part of ``results.json``. Unknown keys are ignored.

    A later version may add some, and an older report still draws the rest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
