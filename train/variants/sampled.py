"""Sampled-SAE scores the latents over the batch, and BatchTopK then selects among the best ones, the pool.
"Distribution-Aware Feature Selection for SAEs", sections 3 and 3.1.
"""

from math import floor
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..latent_shards import sum_in_order
from ..pairs import Pairs
from .base.batch_rule import BatchRule, hint_of, largest_of_batch
from .base.gradients import train_selected
from .base.rows import Batch, RandomStream, Rows
from .base.variant import Plan
from .losses.auxk import AuxK, auxk_terms

THRESHOLD_ROWS = 256  # rows of a batch on which the threshold is measured


class Sampled(BatchRule):
    """codes = ReLU(the k * B largest pre-activations of the batch within the pool), loss = |x - x̂|² + AuxK.

    The pool holds the floor(ℓ k) latents with the highest scores over the batch; every batch has its own
    pool. ℓ is ``pool_factor``: ℓ = 1 leaves k latents, ℓ = F / k leaves all of them, which is BatchTopK. With
    activations Z, the score of latent j is

        l2: |Z_j|    squared_l2: |Z_j|² + λ    entropy: -sum over b of q_bj log q_bj, q_bj = Z_bj / sum_b Z_bj
        uniform: the same for all, hence a random pool

    l2 and squared_l2 rank alike, and λ changes no rank, so it is no setting. Where the paper is unclear:

    - Z is taken after ReLU, as entropy requires and as in the code that the paper extends.
      ``scored: pre_activations`` takes it before.
    - The entropy formula with TopK prefers latents that fire evenly, but the text says selectively. We follow
      the formula; ``entropy_prefers: low`` follows the text and ignores latents that do not fire. The
      formula's ε only guards log 0; we use its limit 0.
    - Inference has a threshold and no pool. The paper's settings average the least value selected within the
      pool (``threshold_of: pool``), which lets far more than k latents through when there is no pool. ``all``
      averages the least value that BatchTopK would select, measured on 256 rows of each batch.
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
            raise ValueError(f"entropy_prefers has no effect with score={self.score}: leave it out")
        if self.scored == "pre_activations" and self.score in ("entropy", "uniform"):
            reason = "needs values of one sign" if self.score == "entropy" else "uses no values"
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
        """floor(ℓ k), corrected for the rounding of ℓ, so that ℓ = F / k gives F."""
        return floor(self.pool_factor * self.k + 1e-6)

    def train(self, batch: Batch, codes: Pairs) -> None:
        train_selected(batch, codes, auxk_terms(self.auxk, self.k))

    def codes_for_threshold(self, batch: Batch, codes: Pairs) -> Pairs:
        if self.threshold_of == "pool" or self.pool_size() >= batch.shards.total:
            return codes
        return largest_of_batch(batch.leading_rows(THRESHOLD_ROWS), self.k)

    def select(self, rows: Rows) -> Pairs:
        if self.pool_size() >= rows.shards.total:
            return largest_of_batch(rows, self.k, hint_of(rows))
        pool = self.choose_pool(rows)
        total = min(self.k, pool.numel()) * rows.num_rows_of_all
        chosen = rows.pre_activations(rows.shards.among_own(pool)).largest_of_batch(total, hint_of(rows))
        return chosen.positive()

    def choose_pool(self, rows: Rows) -> Tensor:
        """Choose the latents, of all F, that may be active on ``rows``: int64 [floor(ℓ k)], ascending."""
        if self.score == "uniform":
            order = rows.random_order(RandomStream.POOL, rows.shards.total)
        else:
            order = torch.sort(rows.shards.gather(self.scores(rows)), descending=True, stable=True).indices
        return order[: self.pool_size()].sort().values

    def scores(self, rows: Rows) -> Tensor:
        """The score of each latent, float64 [F]; the pool takes the highest, ties go to the lowest latent."""
        entropy, positive = self.score == "entropy", self.scored == "relu"
        sums = rows.x_centered.new_zeros(1 + entropy, rows.num_latents, dtype=torch.float64)
        for _, pre in rows.pre_activations(screened=False).blocks():
            sums += rows.backend.sum_rows(pre, positive=positive, entropy=entropy)
        sums = sum_in_order(rows.row_group.gather(sums))
        if not entropy:
            return sums[0]  # monotone in |Z_j|
        total, moment = sums.unbind()
        fires = total > 0
        safe = total.where(fires, 1.0)
        found: Tensor = (safe.log() - moment / safe).where(fires, 0.0)  # -sum q log q, with q = z / total
        return found if self.entropy_prefers == "high" else (-found).where(fires, -torch.inf)
