"""The rule by which an SAE finds its codes at inference, as one of the forms that other libraries know.

The form follows from ``cfg.inference``, not from the kind: a new kind that declares one of these rules is
exported without a change here, and :mod:`.comparison` checks what it computes.
"""

from dataclasses import dataclass
from typing import Literal

from ...common.errors import UsageError
from ...train import SAE

Form = Literal["relu", "topk", "threshold", "gated"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A form, and whether it is the SAE's own rule (``exact``) or one that agrees with it on most rows."""

    form: Form
    exact: bool = True


_RULES = {
    "relu": Rule(form="relu"),
    "topk": Rule(form="topk"),
    "threshold": Rule(form="threshold"),
    "gated": Rule(form="gated"),
    "probabilistic_topk": Rule(form="topk", exact=False),  # gates, then |a|: mostly selects the k largest a
}


_ALWAYS = ("W_enc", "W_dec", "b_enc", "b_dec")
_OF_FORM: dict[str, tuple[str, ...]] = {"threshold": ("threshold",), "gated": ("r_mag", "b_mag")}


def choose_rule(sae: SAE) -> Rule:
    """Choose the form for ``sae`` and check that its tensors fit.

    Raises:
        UsageError: no other library has such a rule, or the SAE's tensors are damaged or not of its rule.
    """
    cfg = sae.cfg
    rule = _RULES.get(cfg.inference)
    if rule is None:
        raise UsageError(
            f"SAE {cfg.name} ({cfg.kind}) finds its codes by {cfg.inference!r}, which no format "
            f"can express; they can express {', '.join(_RULES)}"
        )
    _check_tensors(sae, rule.form)
    threshold = sae.threshold if rule.form == "threshold" else None
    if threshold is not None and bool((threshold < 0).any()):
        raise UsageError(
            f"SAE {cfg.name} ({cfg.kind}) has thresholds below 0, as {float(threshold.min()):.3g}; the other "
            "libraries cut at 0 first, so that its negative codes would be lost"
        )
    if rule.form == "topk" and integer_k(sae) is None:
        raise UsageError(f"SAE {cfg.name} ({cfg.kind}) should have a whole number k, got {cfg.k}")
    return rule


def _check_tensors(sae: SAE, form: Form) -> None:
    tensors, who = dict(sae.named_buffers()), f"SAE {sae.cfg.name} ({sae.cfg.kind})"
    for name in _OF_FORM.get(form, ()):
        shapes = [(sae.cfg.num_latents,)] + ([()] if name == "threshold" else [])
        got = tuple(tensors[name].shape) if name in tensors else None
        if got not in shapes:
            expected = " or ".join(str(shape) for shape in shapes)
            raise UsageError(f"{who}: tensor {name} should have shape {expected}, got {got}")
    for name in (*_ALWAYS, *_OF_FORM.get(form, ())):
        bad = tensors[name].isnan() if name == "threshold" else ~tensors[name].isfinite()
        if bool(bad.any()):  # a threshold may be infinite: never active
            raise UsageError(f"{who}: tensor {name} is not finite: its weights are damaged")


def integer_k(sae: SAE) -> int | None:
    """k as a whole number; None if the SAE has no k, or one that is not whole."""
    return None if sae.cfg.k is None or sae.cfg.k != int(sae.cfg.k) else int(sae.cfg.k)
