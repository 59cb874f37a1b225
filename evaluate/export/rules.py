"""What an SAE computes outside training, as the few forms that other libraries know.

The form follows from ``cfg.inference``, not from the kind: a new kind that declares one of these rules is
exported without a change here, and :mod:`.check` compares what it computes.
"""

from dataclasses import dataclass
from typing import Literal

from ...store.errors import UsageError
from ...train import SAE

Form = Literal["relu", "topk", "threshold", "gated"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``exact``: the form is the rule itself; otherwise it only agrees on most rows, to be measured."""

    form: Form
    exact: bool = True


_RULES = {
    "relu": Rule(form="relu"),
    "topk": Rule(form="topk"),
    "threshold": Rule(form="threshold"),
    "gated": Rule(form="gated"),
    "probabilistic_topk": Rule(form="topk", exact=False),  # gates, then |a|: mostly the k largest a
}


def rule_of(sae: SAE) -> Rule:
    """
    Raises:
        UsageError: no other library has such a rule, or the SAE's tensors are damaged or not of its rule.
    """
    cfg = sae.cfg
    for name, tensor in sae.named_buffers():
        if bool(tensor.isnan().any()) or (name != "threshold" and bool(tensor.isinf().any())):
            raise UsageError(f"SAE {cfg.name}: tensor {name} is not finite: its weights are damaged")
    rule = _RULES.get(cfg.inference)
    if rule is None:
        raise UsageError(
            f"SAE {cfg.name} ({cfg.kind}) finds its codes by {cfg.inference!r}, which no format "
            f"can express; they can express {', '.join(_RULES)}"
        )
    if rule.form == "threshold":
        if sae.threshold is None:
            raise UsageError(
                f"SAE {cfg.name} ({cfg.kind}) lacks its tensor 'threshold': its files are not whole"
            )
        if bool((sae.threshold < 0).any()):
            raise UsageError(
                f"SAE {cfg.name} ({cfg.kind}) has thresholds below 0, as {float(sae.threshold.min()):.3g}; "
                "the other libraries cut at 0 first, so that its negative codes would be lost"
            )
    if rule.form == "topk" and (cfg.k is None or cfg.k != int(cfg.k)):
        raise UsageError(f"SAE {cfg.name} ({cfg.kind}) should have a whole number k, got {cfg.k}")
    return rule


def whole_k(sae: SAE) -> int | None:
    """k as a whole number, None where the rule has none."""
    return None if sae.cfg.k is None or sae.cfg.k != int(sae.cfg.k) else int(sae.cfg.k)
