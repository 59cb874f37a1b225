"""The settings of what is measured on labelled text."""

from typing import Annotated

from pydantic import Field, PositiveInt

from ...common.counts import Count
from ...common.frozen import FrozenModel


class ProbingConfig(FrozenModel):
    """k-sparse probing. The defaults are SAEBench's."""

    data: tuple[str, ...] = ()
    """Labelled texts: .jsonl or .csv files, or SAEBench's names of data sets, which are fetched from the hub.
    """
    text: str = "text"
    """The field of a file that holds the text."""
    label: str = "label"
    """The field of a file that holds the class."""
    train_texts: Count = Field(4000, ge=2)
    """Texts of a binary task that a probe is trained on, half of them of the class; fewer if there are fewer.
    """
    test_texts: Count = Field(1000, ge=2)
    """Texts of a binary task that the accuracy is measured on."""
    context: Count = Field(128, ge=2)
    """Tokens of a text that are read, from its beginning."""
    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 5, 10, 20)
    """Numbers of latents that a sparse probe sees."""
