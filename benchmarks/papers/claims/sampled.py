"""The claims of Sampled-SAE, in our words."""

from collections.abc import Iterator
from itertools import pairwise

from claim import Claim
from verdicts import Figures


def sampled_claims(found: Figures) -> Iterator[Claim]:
    """The claims along ℓ, for the pool factors that were trained."""
    pools = sorted(
        {int(name.split("_l")[2].split("_")[0]) for name in found if name.startswith("sampled_squared_l2")}
    )
    for pool in pools:
        yield Claim(
            where="section 5, figure 4",
            text=f"Squared ℓ2, ℓ = {pool}: more latents fire on over 10 % of the rows than with BatchTopK",
            figure="over_10",
            lower="batch_topk",
            higher=f"sampled_squared_l2_l{pool}",
        )
    for latents, them in ((5, "5 latents"), (1, "one latent")):
        yield Claim(
            where="section 5, table 3 (there ℓ = 3 and 5; each kind at its own learning rate)",
            text=f"A probe of {them} is more accurate for squared ℓ2, ℓ = 10, than for BatchTopK",
            figure=f"probe_{latents}",
            lower="tuned_batch_topk",
            higher="tuned_sampled",
            why="ℓ · k / F of the latents are in the pool: far more than in the paper, whose SAEs are wide.",
        )
    for score in ("squared_l2", "entropy", "uniform"):
        for pool in pools:
            yield Claim(
                where="section 5, figure 3",
                text=f"BatchTopK reconstructs better than {score}, ℓ = {pool}",
                figure="fvu at L0 = k",
                lower="batch_topk",
                higher=f"sampled_{score}_l{pool}",
            )
            yield Claim(
                where="section 5, figure 3 (by the rule of training, with the pool)",
                text=f"... also where both choose as in training, {score}, ℓ = {pool}",
                figure="fvu_batch",
                lower="batch_topk",
                higher=f"sampled_{score}_l{pool}",
            )
        for low, high in pairwise(pools):
            yield Claim(
                where="figures 3 to 6",
                text=f"FVU falls from ℓ = {low} to {high} ({score})",
                figure="fvu at L0 = k",
                lower=f"sampled_{score}_l{high}",
                higher=f"sampled_{score}_l{low}",
            )
        if pools:
            middle = pools[len(pools) // 2]
            yield Claim(
                where="section 5, table 1",
                text=f"Seeds of BatchTopK agree more (MMCS) than those of {score}, ℓ = {middle}",
                figure="mmcs",
                lower=f"sampled_{score}_l{middle}",
                higher="batch_topk",
                why="Pools leave more or fewer latents dead (table below), and dead ones count in the "
                "mean. The paper trains far longer.",
            )
