"""Sampled-SAE: a pool of latents is chosen by what they do over the batch; BatchTopK follows within the pool.
"Distribution-Aware Feature Selection for SAEs", sections 3 and 3.1.
"""

from math import floor
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..pairs import Pairs
from .base.batch_rule import BatchRule, hint_of, largest_of_batch
from .base.gradients import train_selected
from .base.rows import Batch, RandomStream, Rows
from .base.variant import Plan
from .losses.auxk import AuxK

THRESHOLD_ROWS = 256  # of a batch, that the threshold is measured on


class Sampled(BatchRule):
    """codes = ReLU(the k * B largest pre-activations of the batch within the pool), loss = |x - x̂|² + AuxK.

    The pool are the floor(ℓ k) latents with the highest score over the batch, chosen anew for every batch;
    ℓ is ``pool_factor``. ℓ = 1 leaves k latents, ℓ = F / k all of them, which is BatchTopK. With Z the
    activations, latent j scores

        l2: |Z_j|    squared_l2: |Z_j|² + λ    entropy: -sum over b of q_bj log q_bj, q_bj = Z_bj / sum_b Z_bj
        uniform: the same for all, hence a random pool

    l2 and squared_l2 rank alike, and λ changes no rank, so that there is no setting for it. Readings:

    - Z is taken after ReLU, as entropy needs it and as in the code that the paper extends; ``scored`` has the
      other one.
    - For entropy the formula, with TopK, prefers latents that fire evenly, the text those that fire
      selectively. We follow the formula; ``entropy_prefers: low`` follows the text, and passes over latents
      that do not fire. The ε in it only guards log 0: its limit 0 is taken.
    - Inference has a threshold and no pool. The least value selected within the pool, which the paper's
      settings average (``threshold_of: pool``), lets far more than k latents through without the pool.
      ``all`` averages the value at which k are left: what BatchTopK would select last on 256 rows of a batch.
    """

    kind: Literal["sampled"] = "sampled"
    pool_factor: Annotated[float, Field(ge=1)] = 5.0
    score: Literal["l2", "squared_l2", "entropy", "uniform"] = "squared_l2"
    entropy_prefers: Literal["high", "low"] = "high"
    scored: Literal["relu", "pre_activations"] = "relu"
    threshold_of: Literal["all", "pool"] = "all"
    auxk: AuxK | None = AuxK()

    @model_validator(mode="after")
    def _settings_take_effect(self) -> Self:
        if self.entropy_prefers == "low" and self.score != "entropy":
            raise ValueError(f"entropy_prefers does nothing with score={self.score}: leave it out")
        if self.scored == "pre_activations" and self.score in ("entropy", "uniform"):
            reason = "needs values of one sign" if self.score == "entropy" else "looks at no values"
            raise ValueError(f"score={self.score} {reason}: leave out scored=pre_activations")
        return self

    @property
    def default_name(self) -> str:
        selective = "_low" if self.entropy_prefers == "low" else ""
        return f"sampled_{self.score}{selective}_l{self.pool_factor:g}_k{self.k}"

    def problems(self, plan: Plan) -> list[str]:
        found = super().problems(plan)
        if self.pool_size() > plan.num_latents:
            found.append(
                f"pool_factor={self.pool_factor:g} with k={self.k} asks for {self.pool_size()} of only "
                f"{plan.num_latents} latents: set it to {plan.num_latents / self.k:g} (BatchTopK) or less"
            )
        return found

    def pool_size(self) -> int:
        """floor(ℓ k); what rounding took from a whole number is given back, so that ℓ = F / k gives F."""
        return floor(self.pool_factor * self.k + 1e-6)

    def train(self, batch: Batch, codes: Pairs) -> None:
        train_selected(batch, codes, [] if self.auxk is None else [self.auxk])

    def setting_threshold(self, batch: Batch, codes: Pairs) -> Pairs:
        if self.threshold_of == "pool" or self.pool_size() >= batch.num_latents:
            return codes
        return largest_of_batch(batch.of_rows(slice(0, THRESHOLD_ROWS)), self.k)

    def select(self, rows: Rows) -> Pairs:
        if self.pool_size() >= rows.num_latents:
            return largest_of_batch(rows, self.k, hint_of(rows))
        pool = self.pool(rows)
        total = min(self.k, pool.numel()) * rows.num_rows
        chosen = rows.pre_activations(pool).largest_of_batch(total, hint_of(rows))
        return chosen.keep(chosen.value > 0)

    def pool(self, rows: Rows) -> Tensor:
        """The latents that may be active on ``rows``, ascending: int64 [floor(ℓ k)]."""
        if self.score == "uniform":
            generator = rows.generator(RandomStream.POOL)
            order = torch.randperm(rows.num_latents, generator=generator, device=rows.x_centered.device)
        else:
            order = torch.sort(self.scores(rows), descending=True, stable=True).indices
        return order[: self.pool_size()].sort().values

    def scores(self, rows: Rows) -> Tensor:
        """What latents are ranked by, float64 [F]: the highest first, the lowest latent among equals."""
        total, moment = (rows.x_centered.new_zeros(rows.num_latents, dtype=torch.float64) for _ in range(2))
        for _, pre in rows.pre_activations().blocks():
            z = pre.clamp(min=0.0) if self.scored == "relu" else pre
            if self.score == "entropy":
                total += z.sum(0)
                moment += torch.xlogy(z, z).sum(0)
            else:
                moment += z.square().sum(0)
        if self.score != "entropy":
            return moment  # monotone in |Z_j|
        fires = total > 0
        safe = total.where(fires, 1.0)
        entropy = (safe.log() - moment / safe).where(fires, 0.0)  # -sum q log q, with q = z / total
        return entropy if self.entropy_prefers == "high" else (-entropy).where(fires, -torch.inf)
