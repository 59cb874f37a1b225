"""Latents that were sampled, with contexts in which they are active."""

from .metrics import Histogram
from .record import Record


class Context(Record):
    """One place in the text where a latent is active, with the tokens around it.

    ``activations[i]`` belongs to ``tokens[i]``; it is None if the measured rows do not hold that token.
    ``peak`` is the index of the token for which the context was chosen.
    """

    row: int
    sequence: int
    position: int
    document: int
    peak: int
    token_ids: list[int]
    tokens: list[str]
    activations: list[float | None]


class LatentResult(Record):
    """A sampled latent. ``rank`` 1 is the densest; ``mean_activation`` is over the rows on which it fires."""

    index: int
    rank: int
    density: float
    max_activation: float
    mean_activation: float
    activation_histogram: Histogram
    contexts: list[Context]
