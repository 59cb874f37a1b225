"""Gated: one path decides which latents are active, another one how strongly. Rajamanoharan et al. 2024a,
"Improving Dictionary Learning with Gated Sparse Autoencoders".
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..pairs import Pairs
from .base.gradients import backpropagate, backpropagate_decoder, reconstruct
from .base.parts_above import parts_above
from .base.rows import Batch, Rows
from .base.variant import Plan, Variant
from .losses.penalty import L1


class Gated(Variant):
    """With a = W_enc (x - b_dec), g = a + b_enc and m = exp(r_mag) a + b_mag:

        codes f = [g > 0] ReLU(m)
        loss    = |x - reconstruction of f|² + l1 * sum of ReLU(g) + |x - reconstruction of ReLU(g)|²

    where the decoder and its bias are held fixed in the last reconstruction. ``b_enc`` is the paper's b_gate;
    W_enc is its W_gate, and r_mag scales it to W_mag. The step [g > 0] has no gradient: g learns from the
    last two terms.
    """

    kind: Literal["gated"] = "gated"
    l1: L1 = L1(coefficient=0.1)  # for rows of norm 1; no value suits all data

    inference: ClassVar[str] = "gated"
    selects_alone: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = True

    @property
    def default_name(self) -> str:
        return f"gated_l1_{self.l1.coefficient:g}"

    @property
    def expected_l0(self) -> None:
        return None

    @property
    def needs_unit_decoder(self) -> bool:
        return True

    def problems(self, plan: Plan) -> list[str]:
        return self.l1.problems(plan.num_steps)

    def extra_parameters(self, plan: Plan) -> Mapping[str, Tensor]:
        return {"r_mag": torch.zeros(plan.num_latents), "b_mag": torch.zeros(plan.num_latents)}

    def start_from(self, tensors: Mapping[str, Tensor], plan: Plan) -> Mapping[str, Tensor]:
        """Take both paths of a gated SAE; of another kind both are its one path, so that f = ReLU(g)."""
        if "r_mag" in tensors:
            return {name: tensors[name] for name in ("r_mag", "b_mag")}
        return {"b_mag": tensors["b_enc"].clone()}

    def forward_backward(self, batch: Batch) -> None:
        scale, sums = batch.parameters["r_mag"].exp(), batch.backend.sum_per_latent
        for part, gate in parts_above(batch, 0.0):
            magnitude = magnitudes(part, gate)
            codes = gate.keep(magnitude > 0).with_value(magnitude[magnitude > 0])
            found = reconstruct(part, codes)
            backpropagate_decoder(part, found)
            part.record(codes, found.squared_error)
            d_magnitude = torch.zeros_like(magnitude).masked_scatter_(magnitude > 0, found.d_value)
            through_scale = d_magnitude * scale[gate.latent]
            batch.gradients["r_mag"].add_(sums(gate, through_scale * affinities(part, gate)))
            batch.gradients["b_mag"].add_(sums(gate, d_magnitude))
            d_gate = reconstruct(part, gate, name="gate").d_value.add_(self.l1(part, gate))
            backpropagate(part, gate, through_scale + d_gate, d_bias=d_gate)

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        gate = rows.pre_activations().above(0.0)
        magnitude = magnitudes(rows, gate)
        return gate.with_value(magnitude).keep(magnitude > 0)


def affinities(rows: Rows, gate: Pairs) -> Tensor:
    """a at the pairs ``gate``, whose values are g: [P]."""
    return gate.value - rows.parameters["b_enc"][gate.latent]


def magnitudes(rows: Rows, gate: Pairs) -> Tensor:
    """m at the pairs ``gate``, whose values are g: [P]."""
    scale, bias = rows.parameters["r_mag"].exp(), rows.parameters["b_mag"]
    return affinities(rows, gate) * scale[gate.latent] + bias[gate.latent]
