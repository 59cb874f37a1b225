"""ReLU keeps every positive pre-activation; an L1 penalty makes them few. Bricken et al. 2023, "Towards
Monosemanticity"; Conerly et al. 2024, "Update on how we train SAEs".
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from ..engine.optimizer import Optimizer
from ..pairs import Pairs
from .base.decoder_norms import decoder_norms
from .base.gradients import backpropagate, reconstruct
from .base.parts_above import parts_above
from .base.rows import Batch, Rows
from .base.variant import Plan, Variant
from .losses.penalty import L1
from .losses.resampling import Resampling


class ReLU(Variant):
    """codes f = ReLU(W_enc (x - b_dec) + b_enc), loss = |x - reconstruction|² + l1 * sum of f.

    With ``decoder: unit_norm`` (2023) the decoder's rows keep norm 1; with ``free`` (2024) they may have any
    norm, and the penalty multiplies f_i by |W_dec_i| (a crosscoder's: by the sum of its norms at the hooks).
    Other than the 2024 text we always subtract b_dec before encoding; this shifts b_enc but the same codes
    can be reached. Resampling belongs to the 2023 recipe and is off by default.
    """

    kind: Literal["relu"] = "relu"
    l1: L1 = L1(coefficient=0.1)  # for rows of norm 1; no value suits all data
    decoder: Literal["unit_norm", "free"] = "unit_norm"
    resampling: Resampling | None = None

    inference: ClassVar[str] = "relu"
    selects_alone: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = True

    @property
    def unit_norm_decoder(self) -> bool:
        return self.decoder == "unit_norm"

    @property
    def needs_unit_decoder(self) -> bool:
        return self.unit_norm_decoder

    @property
    def default_name(self) -> str:
        return f"relu_l1_{self.l1.coefficient:g}{'_free' if self.decoder == 'free' else ''}"

    @property
    def expected_l0(self) -> None:
        return None

    def problems(self, plan: Plan) -> list[str]:
        resampling = [] if self.resampling is None else self.resampling.problems(plan)
        return self.l1.problems(plan.num_steps) + resampling

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        return {} if self.resampling is None else self.resampling.initial_state(plan.num_latents)

    def forward_backward(self, batch: Batch) -> None:
        norms = None if self.unit_norm_decoder else decoder_norms(batch)
        for part, codes in parts_above(batch, 0.0):
            found = reconstruct(part, codes)
            d_value = found.d_value.add_(self.l1(part, codes, None if norms is None else norms.total))
            backpropagate(part, codes, d_value, found)
            part.record(codes, found.squared_error)
            if norms is not None:  # d (sum of f_i |w_i|) / d w_i = (sum of f_i) w_i / |w_i|
                norms.add_gradient(
                    batch, part.backend.sum_per_latent(codes, codes.value), self.l1.weight(part)
                )

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        return rows.pre_activations().above(0.0)

    def after_step(self, batch: Batch, optimizer: Optimizer) -> None:
        if self.resampling is not None:
            self.resampling.after_step(batch, optimizer, self.encode)
