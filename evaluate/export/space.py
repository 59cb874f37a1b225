"""Which rows an export takes as input, and how the format expresses the SAE's normalization.

The SAE was trained on normalized rows y. The other library sees rows v = factor * y. If biases and thresholds
are multiplied by the factor, its features are ``factor`` times the SAE's, and W_enc and W_dec stay as they
are: decoder rows keep norm 1, which these libraries expect.

y is x or u times the normalization's own factor f (``store/normalization.py``), or of ``rms_norm`` what the
library's own step gives:

=================  ============================  =================  =======================
y                  what the library does first   v                  factor
=================  ============================  =================  =======================
x f                nothing                       x                  1 / f
u f                subtracts the row's mean,     sqrt(D - 1) u      sqrt(D - 1) / f
                   divides by its std
x sqrt(D) / |x|    multiplies by sqrt(D) / |x|   y                  1
any                nothing (normalized input)    y                  1
=================  ============================  =================  =======================

The rows of a cross-layer transcoder have a number f for each hook, by which the format scales its weights.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from torch import Tensor

from ...common.errors import UsageError
from ...store import Normalizer
from ...train import SAE
from ...train.sae_hooks import all_hooks

Step = Literal["standardize", "rms_norm"]
"""What a library can do to each row first: subtract its mean and divide by its standard deviation, or
multiply it by sqrt(D) / |x|. It undoes that to the reconstruction."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """``rows``: what the export takes; ``step``: what the library itself does to each row first."""

    rows: Literal["raw", "normalized"]
    step: Step | None = None
    factor: float

    def scaled(self, bias: Tensor) -> Tensor:
        """A bias or a threshold of the SAE in this space: float32, rounded once."""
        return (bias.double() * self.factor).float()


def choose_space(
    sae: SAE, *, format_name: str, steps: Mapping[str, Collection[Step]], normalized_input: bool
) -> Space:
    """Choose the rows that the export takes as input.

    Args:
        steps: those that a format can make its library take, by the name of the format, for ``format_name``
            and every other format that can hold the SAE.
        normalized_input: the rows handed in will be normalized already, as the SAE's cache normalizes them.

    Raises:
        UsageError: the format cannot normalize rows as needed, or ``normalized_input`` does nothing.
    """
    kind, d_model = sae.normalizer.kind, sae.cfg.d_model
    parts = [part.normalizer for part in all_hooks(sae.cfg)]
    if sae.cfg.hooks is not None and not normalized_input:
        if apart := [part for part in parts if part.starts_from != "raw" or part.factor is None]:
            raise UsageError(
                f"SAE {sae.cfg.name} was trained on rows {_own(apart)}, and the {format_name} format has no "
                "such step for several hooks: use --normalized-input, to hand in rows that you normalize "
                "yourself"
            )
        return Space(rows="raw", factor=1.0)  # the format scales each hook for itself
    if normalized_input:
        if kind == "none":
            raise UsageError(
                f"SAE {sae.cfg.name} was trained on raw rows, so that --normalized-input changes nothing: "
                "leave it out"
            )
        return Space(rows="normalized", factor=1.0)
    factor = sae.normalizer.factor
    if factor is not None and sae.normalizer.starts_from == "raw":
        return Space(rows="raw", factor=1 / factor)
    step: Step | None = "rms_norm" if kind == "rms_norm" else None if factor is None else "standardize"
    if step is None or step not in steps[format_name]:
        able = [name for name, own_steps in steps.items() if step in own_steps]
        other = f"--format {' or '.join(able)}, which has it, or " if able else ""
        raise UsageError(
            f"SAE {sae.cfg.name} ({sae.cfg.kind}) was trained on rows {_own([sae.normalizer])}, and the "
            f"{format_name} format has no such step: use {other}"
            "--normalized-input, to hand in rows that you normalize yourself"
        )
    return Space(rows="raw", step=step, factor=1.0 if factor is None else sqrt(d_model - 1) / factor)


def _own(normalizers: Sequence[Normalizer]) -> str:
    """What normalizations that treat each row by itself do, in words."""
    kinds = " and ".join(dict.fromkeys(repr(each.kind) for each in normalizers))
    mean = "less its own mean, " if any(each.starts_from != "raw" for each in normalizers) else ""
    return f"normalized by {kinds}, each {mean}by a number of its own"
