"""The papers' claims, each in our words with its section, put against the arms that test it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from claim import Claim
from verdicts import Figures

CHOICE: Sequence[Claim] = (
    Claim(
        where="section 6, figure 4",
        text="Mutual Choice reconstructs better than TopK at the same number of active latents",
        figure="fvu at L0 = k",
        lower="mutual",
        higher="topk",
    ),
    Claim(
        where="section 6, figure 4",
        text="... and recovers more of the model's loss",
        figure="ce_recovered",
        lower="topk",
        higher="mutual",
    ),
    Claim(
        where="section 6, figure 4 (each kind at its own learning rate)",
        text="... also where each kind has the learning rate that suits it",
        figure="fvu at L0 = k",
        lower="tuned_mutual",
        higher="tuned_topk",
    ),
    Claim(
        where="section 6, figure 4 (each kind at its own learning rate)",
        text="Mutual Choice reconstructs better than a standard SAE (ReLU with an L1 penalty)",
        figure="fvu at L0 = k",
        lower="tuned_mutual",
        higher="tuned_relu",
    ),
    Claim(
        where="section 6, figure 4",
        text="Feature Choice, trained after Mutual Choice, reconstructs better than TopK",
        figure="fvu at L0 = k",
        lower="zipf_after_mutual",
        higher="topk",
    ),
    Claim(
        where="section 6, figure 4",
        text="... and recovers more of the model's loss",
        figure="ce_recovered",
        lower="topk",
        higher="zipf_after_mutual",
    ),
    Claim(
        where="section 6, figure 4 (each kind at its own learning rate)",
        text="... also where each kind has the learning rate that suits it",
        figure="fvu at L0 = k",
        lower="tuned_zipf_after_mutual",
        higher="tuned_topk",
    ),
    Claim(
        where="section 6, table 1",
        text="Feature Choice leaves fewer latents dead than TopK with AuxK",
        figure="dead",
        lower="zipf_after_mutual",
        higher="topk",
        why="A latent is dead after so few rows here that Zipf's rarest latents can be silent for as long.",
    ),
    Claim(
        where="section 6, figure 5",
        text="Feature Choice leaves fewer latents dead than Mutual Choice",
        figure="dead",
        lower="zipf_after_mutual",
        higher="mutual",
    ),
    Claim(
        where="section 6, figure 5",
        text="Mutual Choice leaves fewer latents dead than TopK without an auxiliary loss",
        figure="dead",
        lower="mutual",
        higher="topk_without_auxk",
    ),
    Claim(
        where="section 6, figure 5",
        text="aux_zipf leaves fewer latents dead than AuxK alone",
        figure="dead",
        lower="mutual",
        higher="mutual_without_zipf",
        why="With AuxK's k small, AuxK alone revives nearly all.",
    ),
    Claim(
        where="section 4.2",
        text="... and fewer latents dying (Definition 3.1)",
        figure="dying",
        lower="mutual",
        higher="mutual_without_zipf",
    ),
    Claim(
        where="section 6, figure 5",
        text="Either loss leaves fewer latents dead than none",
        figure="dead",
        lower="mutual",
        higher="mutual_without_either",
    ),
    Claim(
        where="sections 2.5 and 3.2",
        text="Whether dead latents count as dying (Definition 3.1) or not (section 2.5) does not matter",
        figure="fvu at L0 = k",
        lower="mutual_zipf_without_dead",
        higher="mutual",
        alike=True,
    ),
    Claim(
        where="section 7.1",
        text="After Mutual Choice, Zipf's m_i reconstruct better than uniform ones",
        figure="fvu at L0 = k",
        lower="zipf_after_mutual",
        higher="uniform_after_mutual",
    ),
    Claim(
        where="section 7.1",
        text="... and recover more of the model's loss (there by over 10 % of it)",
        figure="ce_recovered",
        lower="uniform_after_mutual",
        higher="zipf_after_mutual",
    ),
    Claim(
        where="section 7.1, from scratch (ours)",
        text="Without a phase of Mutual Choice, when ranks are arbitrary, Zipf's m_i also reconstruct better",
        figure="fvu at L0 = k",
        lower="zipf_from_scratch",
        higher="uniform_from_scratch",
        why="The paper does not claim it: its ranks are those of the densities after Mutual Choice.",
    ),
    Claim(
        where="section 7",
        text="Training in two phases may perform better than Feature Choice alone (the paper supposes it)",
        figure="fvu at L0 = k",
        lower="zipf_after_mutual",
        higher="zipf_from_scratch",
    ),
    Claim(
        where="section 7 (ours: uniform m_i)",
        text="... also with uniform m_i",
        figure="fvu at L0 = k",
        lower="uniform_after_mutual",
        higher="uniform_from_scratch",
        why="Mutual Choice leaves densities that uniform m_i have to undo within the last 30 % of the steps.",
    ),
    Claim(
        where="table 2",
        text="Mutual Choice reconstructs better than BatchTopK",
        figure="fvu at L0 = k",
        lower="mutual",
        higher="batch_topk",
        why="The two have the same rule; they differ in aux_zipf alone.",
    ),
    Claim(
        where="table 2 (each kind at its own learning rate)",
        text="... also where each kind has the learning rate that suits it",
        figure="fvu at L0 = k",
        lower="tuned_mutual",
        higher="tuned_batch_topk",
        why="The two have the same rule; they differ in aux_zipf alone.",
    ),
    Claim(
        where="table 2",
        text="Feature Choice reconstructs better than BatchTopK",
        figure="fvu at L0 = k",
        lower="zipf_after_mutual",
        higher="batch_topk",
    ),
    Claim(
        where="table 2 (each kind at its own learning rate)",
        text="Mutual Choice reconstructs better than JumpReLU",
        figure="fvu at L0 = k",
        lower="tuned_mutual",
        higher="tuned_jumprelu",
    ),
    Claim(
        where="section 3.2, figure 3",
        text="The densities of TopK follow Zipf's law, R² 0.982 or more",
        figure="zipf_r2",
        lower=0.982,
        higher="topk",
        why="The paper measures published SAEs, wide and trained to the end; these are neither.",
    ),
    Claim(
        where="appendix E",
        text="Mutual Choice's codes are more progressive: with the four largest of each row, FVU is lower",
        figure="fvu_4_kept",
        lower="mutual",
        higher="topk",
    ),
)

PROBABILISTIC: Sequence[Claim] = (
    Claim(
        where="section 4.2, figures 2 and 3",
        text="Probabilistic TopK has a lower MSE than TopK (without AuxK, as there)",
        figure="mse",
        lower="probabilistic",
        higher="topk_without_auxk",
        why="See the study below.",
    ),
    Claim(
        where="section 4.2 (ours: AuxK for TopK)",
        text="... and than TopK with AuxK",
        figure="mse",
        lower="probabilistic",
        higher="topk",
        why="See the study below.",
    ),
    Claim(
        where="section 4.2, figure 2 (each kind at its own learning rate)",
        text="... and than TopK with AuxK, where each kind has the learning rate that suits it",
        figure="mse at L0 = k",
        lower="tuned_probabilistic",
        higher="tuned_topk",
        why="See the study below.",
    ),
    Claim(
        where="section 4.2, figure 2 (each kind at its own learning rate)",
        text="It has a lower MSE than ReLU with an L1 penalty",
        figure="mse at L0 = k",
        lower="tuned_probabilistic",
        higher="tuned_relu",
    ),
    Claim(
        where="section 4.2, figure 2 (each kind at its own learning rate)",
        text="It has a lower MSE than Gated",
        figure="mse at L0 = k",
        lower="tuned_probabilistic",
        higher="tuned_gated",
    ),
    Claim(
        where="section 4.2, figure 4",
        text="It leaves fewer latents dead than TopK (without AuxK)",
        figure="dead",
        lower="probabilistic",
        higher="topk_without_auxk",
    ),
    Claim(
        where="section 4.2 (ours: AuxK for TopK)",
        text="... and than TopK with AuxK",
        figure="dead",
        lower="probabilistic",
        higher="topk",
    ),
    Claim(
        where="table 1 (the reading is ours)",
        text="The warmup of 20,000, read as steps (53 % of the run), serves it as well as 4 %",
        figure="mse",
        lower="probabilistic_long_warmup",
        higher="probabilistic",
        alike=True,
        why="While β is high the gates are open at random, and that takes half of so short a run.",
    ),
    Claim(
        where="section 5.1, figure 6",
        text="Scores without the magnitude are worse",
        figure="mse",
        lower="probabilistic",
        higher="probabilistic_no_magnitude",
    ),
    Claim(
        where="section 5.1, figure 6",
        text="A sigmoid in place of the Concrete gate is worse at small k",
        figure="mse",
        lower="probabilistic",
        higher="probabilistic_sigmoid",
        why="Without noise it is nearly TopK of the normalized pre-activations; the noise costs here.",
    ),
    Claim(
        where="ours, to see what the noise costs",
        text="Without noise (a sigmoid gate) its loss is that of TopK (without AuxK)",
        figure="mse",
        lower="probabilistic_sigmoid",
        higher="topk_without_auxk",
        alike=True,
    ),
    Claim(
        where="section 5.1, figure 6",
        text="Without LayerNorm it is about as good",
        figure="mse",
        lower="probabilistic",
        higher="probabilistic_no_layer_norm",
        alike=True,
        why="Rows have norm 1, as there: without LayerNorm pre-activations are far below the gate's noise.",
    ),
    Claim(
        where="section 5.2, figure 7",
        text="A first temperature of 0.5 is worse than 5 at small k",
        figure="mse",
        lower="probabilistic",
        higher="probabilistic_beta0.5",
    ),
    Claim(
        where="section 5.2, figure 7",
        text="10 is about as good as 5",
        figure="mse",
        lower="probabilistic",
        higher="probabilistic_beta10",
        alike=True,
    ),
)


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
            )


CLAIMS: Mapping[str, Callable[[Figures], Sequence[Claim]]] = {
    "Mutual and Feature Choice": lambda found: CHOICE,
    "Probabilistic TopK": lambda found: PROBABILISTIC,
    "Sampled-SAE": lambda found: tuple(sampled_claims(found)),
}
