"""JumpReLU keeps pre-activations above a learned threshold per latent. Rajamanoharan et al. 2024b, "Jumping
Ahead"; the tanh penalty is from Conerly et al. 2025, "Dictionary Learning Optimization Techniques".
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ..engine.optimizer import Optimizer
from ..pairs import Pairs
from .base.decoder_norms import DecoderNorms, decoder_norms
from .base.gradients import backpropagate, reconstruct
from .base.parts_above import parts_above
from .base.rows import Batch, Rows
from .base.variant import Plan, Variant
from .losses.penalty import Penalty

LARGEST = 1e30  # a threshold that no pre-activation reaches
PARAMETER, THRESHOLD = "threshold_parameter", "threshold"


class StepPenalty(Penalty):
    """coefficient * number of active latents: the sum of H(z - θ), which has a gradient for θ only."""

    kind: Literal["step"] = "step"


class TanhPenalty(Penalty):
    """coefficient * sum of tanh(scale * f_i |W_dec_i|); the decoder's rows may have any norm."""

    kind: Literal["tanh"] = "tanh"
    scale: PositiveFloat = 4.0


class JumpReLU(Variant):
    """With z = W_enc (x - b_dec) + b_enc: codes f = z [z > θ], loss = |x - reconstruction|² + penalty.

    Gradients of the jump are estimated with the rectangle K(u) = [|u| < 1/2] of width ε:

        d f / d z = [z > θ]
        d f / d θ = -θ/ε K((z - θ) / ε)
        d H(z - θ) / d θ = -1/ε K((z - θ) / ε)

    With ``jump_to: threshold_and_input`` (2025) the gradient of the jump by θ is also added to that of z with
    the opposite sign. ``threshold_scale: log`` (2024) trains log θ: Adam then multiplies θ by factors near 1,
    so that θ hardly moves in short runs. ``linear`` trains θ itself and keeps it at 0 or above. θ and ε are
    for rows of norm 1. Other than the papers we always subtract b_dec before encoding; this shifts b_enc but
    the same codes can be reached.
    """

    kind: Literal["jumprelu"] = "jumprelu"
    penalty: Annotated[StepPenalty | TanhPenalty, Field(discriminator="kind")] = StepPenalty(
        coefficient=0.003
    )
    initial_threshold: PositiveFloat = 0.001
    bandwidth: PositiveFloat = 0.001  # ε
    threshold_scale: Literal["log", "linear"] = "log"
    jump_to: Literal["threshold", "threshold_and_input"] = "threshold"

    inference: ClassVar[str] = "threshold"
    selects_alone: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = True

    @property
    def unit_norm_decoder(self) -> bool:
        return self.penalty.kind == "step"

    @property
    def default_name(self) -> str:
        linear = "_linear" if self.threshold_scale == "linear" else ""
        to_input = "_to_input" if self.jump_to == "threshold_and_input" else ""
        return f"jumprelu_{self.penalty.kind}_{self.penalty.coefficient:g}{linear}{to_input}"

    @property
    def expected_l0(self) -> None:
        return None

    def problems(self, plan: Plan) -> list[str]:
        return self.penalty.problems(plan.num_steps)

    def extra_parameters(self, plan: Plan) -> Mapping[str, Tensor]:
        threshold = torch.full((plan.num_latents,), self.initial_threshold)
        return {PARAMETER: threshold.log() if self.threshold_scale == "log" else threshold}

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        return {THRESHOLD: self._threshold(self.extra_parameters(plan))}

    def start_from(self, tensors: Mapping[str, Tensor], plan: Plan) -> Mapping[str, Tensor]:
        """Take the thresholds; on the logarithmic scale one of 0 becomes a thousandth of the initial one."""
        if THRESHOLD not in tensors:
            return {}
        threshold = tensors[THRESHOLD].expand(plan.num_latents).clamp(0.0, LARGEST)
        if self.threshold_scale == "log":
            parameter = threshold.clamp_min(self.initial_threshold * 1e-3).log()
        else:
            parameter = threshold.clone()
        return {PARAMETER: parameter, THRESHOLD: self._threshold({PARAMETER: parameter})}

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {THRESHOLD: state[THRESHOLD]}

    def after_step(self, batch: Batch, optimizer: Optimizer) -> None:
        if self.threshold_scale == "linear":
            batch.parameters[PARAMETER].clamp_(min=0.0)
        batch.state[THRESHOLD].copy_(self._threshold(batch.parameters))

    def forward_backward(self, batch: Batch) -> None:
        threshold = self._threshold(batch.parameters)
        batch.state[THRESHOLD].copy_(threshold)
        d_threshold = torch.zeros_like(threshold)
        norms = decoder_norms(batch) if self.penalty.kind == "tanh" else None
        for part, near in parts_above(batch, threshold - self.bandwidth / 2):
            z, at = near.value, threshold[near.latent]
            active = z > at
            kernel = (z < at + self.bandwidth / 2).to(z.dtype).div_(self.bandwidth)
            codes = near.with_value(z * active)
            found = reconstruct(part, codes)
            part.record(codes, found.squared_error)
            d_code, d_active, d_norm = self._penalize(part, codes, active, found.d_value, norms)
            d_jump = d_active.addcmul_(at, d_code).mul_(kernel)
            d_threshold -= batch.backend.sum_per_latent(near, d_jump)
            d_pre = d_code * active
            d_pre = d_pre + d_jump if self.jump_to == "threshold_and_input" else d_pre
            backpropagate(part, codes, d_pre, found)
            if norms is not None and d_norm is not None:
                norms.add_gradient(batch, d_norm)
        scale = threshold if self.threshold_scale == "log" else 1.0  # d θ / d log θ = θ
        batch.gradients[PARAMETER].add_(d_threshold * scale)

    def _penalize(
        self, part: Batch, codes: Pairs, active: Tensor, d_code: Tensor, norms: DecoderNorms | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add the penalty.

        Returns:
            ``d_code`` [P] with the penalty's gradient by f added; its gradient by H(z - θ), [P]; and its
            gradient by |W_dec_i|, [F], or None if it does not depend on the norms.
        """
        weight, penalty = self.penalty.weight(part), self.penalty
        if penalty.kind == "step" or norms is None:
            part.outcome.add_loss("sparsity", weight * part.shards.sum(active.sum()).double())
            return d_code, torch.full_like(d_code, weight), None
        norm = norms.total[codes.latent]
        tanh = torch.tanh(penalty.scale * codes.value * norm)
        part.outcome.add_loss("sparsity", weight * part.shards.sum_of_pairs(codes, tanh))
        d_scaled = (1 - tanh.square()) * (weight * penalty.scale)
        d_norm = part.backend.sum_per_latent(codes, d_scaled * codes.value)
        return d_code + d_scaled * norm, torch.zeros_like(d_code), d_norm

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        threshold = self._threshold(rows.parameters) if as_trained else rows.state[THRESHOLD]
        return rows.pre_activations().above(threshold)

    def _threshold(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """θ, [F]."""
        parameter = parameters[PARAMETER]
        return parameter.exp() if self.threshold_scale == "log" else parameter
