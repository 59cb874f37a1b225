"""The shapes that every kind of SAE can have: an autoencoder, transcoders, a crosscoder, a cross-layer
transcoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..train.sae_config import HookRows, SAETarget
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
    def num_layers(self) -> int:
        """Of a cross-layer transcoder; else 1."""
        return int(self.plan.get("num_layers", 1))

    def written(self, W_dec: Tensor) -> Tensor:
        """W_dec [F, O] with zeros for the layers that a latent does not write to."""
        if self.num_layers == 1:
            return W_dec
        size, width = (length // self.num_layers for length in W_dec.shape)
        mask = torch.ones(self.num_layers, self.num_layers).triu()
        return W_dec * mask.repeat_interleave(size, 0).repeat_interleave(width, 1)

    def dense(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters with W_enc as [F, D]: zeros for the layers that a latent does not read."""
        if self.num_layers == 1:
            return dict(parameters)
        W_enc = torch.block_diag(*parameters["W_enc"].chunk(self.num_layers))  # type: ignore[no-untyped-call]
        return {**parameters, "W_enc": W_enc, "W_dec": self.written(parameters["W_dec"])}

    @property
    def config(self) -> dict[str, Any]:
        """The fields of an SAE's config that a shape sets, of unnormalized rows."""
        if self.num_layers > 1:
            layers, widths = range(self.num_layers), (D_MODEL // self.num_layers, D_OUT // self.num_layers)
            encoded, predicted = (
                [hook_rows(f"{name}.{i}", width) for i in layers]
                for name, width in zip(("resid", "out"), widths, strict=True)
            )
            return {
                "format_version": 2,
                "hook": "+".join(part["hook"] for part in encoded),
                "hooks": tuple(HookRows(**part) for part in encoded),
                "targets": tuple(SAETarget(**part) for part in predicted),
                "normalization": {"kind": "joined", "d_model": D_MODEL},
            }
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
    "cross-layer transcoder": Shape(
        {"d_target": D_OUT, "num_layers": 2},
        {
            "hook": "layer.*",
            "target": {"hook": "added.*", "cross_layer": True},
            "initialisation": {"encoder": "independent"},
        },
    ),
    "crosscoder": Shape({"hook_widths": WIDTHS}, {"hook": ["resid", "out"], "crosscoder": True}),
}


def skip_of(parameters: dict[str, Tensor], x: Tensor) -> Tensor | float:
    """What a skip connection adds to the reconstruction, [B, O]."""
    if "W_skip" not in parameters:
        return 0.0
    return (x - parameters["b_in"]) @ parameters["W_skip"].T
