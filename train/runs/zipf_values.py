"""Put the values of a fitted Zipf law into a config: everywhere that the config has such a law."""

from typing import Any

from ...common.errors import UsageError
from ...common.validation import validate
from ..variants.base.zipf import Zipf
from .config import TrainConfig

_LAW = "zipf"  # every setting of this name is a Zipf, or null


def with_zipf(config: TrainConfig, alpha: float, beta: float) -> TrainConfig:
    """Return ``config`` with ``alpha`` and ``beta`` in every Zipf law of its variants; other settings stay.

    A law is m_i of Feature Choice (``zipf``) or the expected prevalence of ``aux_zipf``. ``zipf: null``
    (uniform m_i) stays.

    Raises:
        UsageError: no variant has a law, or the values are impossible.
    """
    values = config.model_dump(mode="json")
    if not _put(values["variants"], {"alpha": alpha, "beta": beta}):
        kinds = ", ".join(sorted({variant.kind for variant in config.variants}))
        raise UsageError(
            f"none of the variants ({kinds}) has a Zipf law: leave the fitted values out, or add a variant "
            "with zipf or aux_zipf"
        )
    return validate(TrainConfig, values, "the config with the fitted values of Zipf's law")


def _put(value: Any, law: dict[str, float]) -> int:
    """Change the laws below ``value`` in place; how many there are."""
    if isinstance(value, list):
        return sum(_put(item, law) for item in value)
    if not isinstance(value, dict):
        return 0
    found = 0
    for key, below in value.items():
        if key == _LAW and isinstance(below, dict) and set(below) >= set(Zipf.model_fields):
            below.update(law)
            found += 1
        else:
            found += _put(below, law)
    return found
