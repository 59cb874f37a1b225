"""Probabilistic TopK: TopK over random gates that become deterministic during training. "Probabilistic TopK
Sparse Autoencoder for Interpreting the Activations of Large Language Models", sections 3 and 5.1.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from ..backends.gates import Gates, layer_norm, rank_gates
from ..engine.schedule import in_steps
from ..pairs import Pairs
from .base.gradients import train_selected
from .base.rows import Batch, RandomStream, Rows
from .base.variant import Plan, Variant

BETA = "beta"


class ProbabilisticTopK(Variant):
    """a = W_enc (x - b_dec), codes m ⊙ a, loss = |x - reconstruction|²; m marks the k largest s = z + λ |a|.

        z = σ((LayerNorm(a) + log u - log(1 - u)) / β) with uniform u in training, without the u terms outside
        β = beta_start up to the end of ``warmup``, then falls exponentially to beta_end at the last step

    There is no b_enc (it stays 0) and no ReLU. The gradient goes through m ⊙ a with m held constant and never
    reaches z. LayerNorm, over the latents of a row, therefore has no scale and shift: they would stay 1 and
    0. The defaults are the paper's, except that ``warmup`` is unclear: Table 1 says 20,000, of 500,000
    samples or of 62,500 steps. We read samples: 4 %.

    Section 5.1 has these ablations: ``magnitude_weight: 0`` (s = z), ``layer_norm: false`` and
    ``gate: sigmoid`` (no u).

    **Numerics.** As β falls, z rounds to 1 for most open gates, and λ |a| is lost beside it: in float32
    1 + 1e-4 |a| resolves |a| only to 1e-3. We therefore rank s - 1 = λ |a| - σ(-t), where t is the logit of
    z; it has full relative precision where gates are open. For λ = 0 we rank t, which orders as z does before
    rounding.
    """

    kind: Literal["probabilistic_topk"] = "probabilistic_topk"
    k: PositiveInt = 32
    magnitude_weight: NonNegativeFloat = 1e-4  # λ
    beta_start: PositiveFloat = 5.0
    beta_end: PositiveFloat = 1e-4
    warmup: NonNegativeFloat = 0.04  # below 1 a fraction of the run, else steps
    layer_norm: bool = True
    gate: Literal["concrete", "sigmoid"] = "concrete"

    inference: ClassVar[str] = "probabilistic_topk"
    shares_rows: ClassVar[bool] = True
    frozen_parameters: ClassVar[frozenset[str]] = frozenset({"b_enc"})

    @property
    def default_name(self) -> str:
        ablation = "_no_magnitude" if self.magnitude_weight == 0 else ""
        ablation += "" if self.layer_norm else "_no_layer_norm"
        ablation += "_sigmoid" if self.gate == "sigmoid" else ""
        return f"probabilistic_topk_k{self.k}{ablation}"

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    def problems(self, plan: Plan) -> list[str]:
        found = []
        if self.beta_end > self.beta_start:
            found.append(
                f"beta_end={self.beta_end:g} must not exceed beta_start={self.beta_start:g}: lower beta_end"
            )
        if in_steps(self.warmup, plan.num_steps) >= plan.num_steps:
            found.append(
                f"warmup={self.warmup:g} leaves none of {plan.num_steps} steps for β to fall: lower warmup"
            )
        return found

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        return {BETA: torch.tensor(self.beta_start)}

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {BETA: state[BETA]}

    def beta_in(self, step: int, num_steps: int) -> float:
        """β in the 0-based ``step``."""
        warmup = in_steps(self.warmup, num_steps)
        progress = max(0, step + 1 - warmup) / (num_steps - warmup)
        return self.beta_start * float((self.beta_end / self.beta_start) ** progress)

    def forward_backward(self, batch: Batch) -> None:
        batch.state[BETA].fill_(self.beta_in(batch.step, batch.num_steps))
        train_selected(batch, self._select(batch, noisy=self.gate == "concrete"))

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        return self._select(rows, noisy=False)

    def _select(self, rows: Rows, *, noisy: bool) -> Pairs:
        """Select the codes of ``rows``; ``noisy`` adds the batch's random numbers to the gates."""
        pre = rows.pre_activations()
        chosen = pre.ranked_by(partial(self.rank, rows, noisy)).largest_per_row(self.k)
        return chosen.with_value(pre.at(chosen))

    def rank(self, rows: Rows, noisy: bool, first_row: int, a: Tensor) -> Tensor:
        """Turn the block a [b, F], which begins at ``first_row`` of ``rows``, into s - 1, or t if λ = 0."""
        shards = rows.shards
        gates = Gates(
            beta=rows.state[BETA],
            magnitude_weight=self.magnitude_weight,
            layer_norm=self.layer_norm,
            draw=rows.draw(RandomStream.GATES, rows.first_row + first_row, shards.first) if noisy else None,
        )
        if shards.is_whole:
            return rows.backend.rank_gates(a, gates)
        normalize = partial(layer_norm, num_latents=shards.total, gather_units=shards.gather_units)
        return rank_gates(rows.backend.random_uniform, a, gates, normalize)
