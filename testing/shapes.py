"""The shapes that every kind of SAE can have: an autoencoder, transcoders and a crosscoder."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..train.sae_hooks import HookRows, SAETarget
from ..train.variants.base.variant import Plan
from .sparse_rows import D_MODEL, D_OUT

WIDTHS = (10, 14)  # of a crosscoder's hooks, D_MODEL in all


@dataclass(frozen=True)
class Shape:
    """What sizes a plan has, and the settings of a run on the cache of two hooks."""

    plan: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def plan_of(self, plan: Plan) -> Plan:
        return Plan(**{**vars(plan), **self.plan})

    @property
    def is_transcoder(self) -> bool:
        return "d_target" in self.plan

    @property
    def config(self) -> dict[str, Any]:
        """The fields of an SAE's config that a shape sets, of unnormalized rows."""
        if self.is_transcoder:
            rows = hook_rows("out", D_OUT)
            return {"format_version": 2, "target": SAETarget(**rows, skip=self.plan.get("skip", False))}
        if "hook_widths" in self.plan:
            parts = [hook_rows(f"resid.{i}", width) for i, width in enumerate(WIDTHS)]
            return {
                "format_version": 2,
                "hook": "resid.0+resid.1",
                "hooks": tuple(HookRows(**part) for part in parts),
                "normalization": {"kind": "joined", "d_model": D_MODEL},
            }
        return {}


def hook_rows(hook: str, width: int) -> dict[str, Any]:
    normalization = {"kind": "scale", "d_model": width, "scale": 2.0}
    return {"hook": hook, "d_model": width, "normalization": normalization}


SHAPES = {
    "autoencoder": Shape(run={"hook": "resid"}),
    "transcoder": Shape(
        {"d_target": D_OUT},
        {"hook": "resid", "target": {"hook": "out"}, "initialisation": {"encoder": "independent"}},
    ),
    "transcoder with skip": Shape(
        {"d_target": D_OUT, "skip": True},
        {
            "hook": "resid",
            "target": {"hook": "out", "skip": True, "normalization": "scale"},
            "initialisation": {"encoder": "independent", "decoder_bias": "mean"},
        },
    ),
    "crosscoder": Shape({"hook_widths": WIDTHS}, {"hook": ["resid", "out"], "crosscoder": True}),
}


def skip_of(parameters: dict[str, Tensor], x: Tensor) -> Tensor | float:
    """What a skip connection adds to the reconstruction, [B, O]."""
    if "W_skip" not in parameters:
        return 0.0
    return (x - parameters["b_in"]) @ parameters["W_skip"].T
