"""The papers' claims, each in our words with its section, put against the arms that test it."""

from collections.abc import Callable, Mapping, Sequence

from claim import Claim
from verdicts import Figures

from .adaptive import ADAPTIVE
from .choice import CHOICE
from .probabilistic import PROBABILISTIC
from .sampled import sampled_claims

__all__ = ["CHOICE", "CLAIMS"]

CLAIMS: Mapping[str, Callable[[Figures], Sequence[Claim]]] = {
    "Mutual and Feature Choice": lambda found: (*CHOICE, *ADAPTIVE),
    "Probabilistic TopK": lambda found: PROBABILISTIC,
    "Sampled-SAE": lambda found: tuple(sampled_claims(found)),
}
