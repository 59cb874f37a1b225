"""The claims behind the tables of ``claims.py``, each put against its figures."""

from collections.abc import Callable, Iterator, Mapping
from statistics import mean, stdev

Figures = Mapping[str, Mapping[str, list[float]]]  # variant -> figure -> value for each seed


def compared(found: Figures, claim: str, figure: str, lower: str, higher: str) -> str:
    """Whether ``lower`` has less of ``figure`` than ``higher`` by more than both standard deviations."""
    a, b = found[lower][figure], found[higher][figure]
    if len({*a, *b}) == 1:
        return f"{claim}: **cannot be told here** ({figure} {a[0]:.4g} in every run of both)."
    apart = stdev(a) + stdev(b)
    if mean(b) - mean(a) > apart:
        verdict = "comes out here"
    elif mean(a) - mean(b) > apart:
        verdict = "the opposite comes out here"
    else:
        verdict = "no difference here"
    return f"{claim}: **{verdict}** ({figure} {mean(a):.4g} of {lower}, {mean(b):.4g} of {higher})."


def choice(found: Figures) -> Iterator[str]:
    topk, mutual = "topk_k4_without_auxk", "mutual_choice_k4"
    for feature in ("feature_choice_k4", "feature_choice_zipf_k4", "feature_choice_zipf_after_mutual_k4"):
        yield compared(found, "Feature Choice ends with fewer dead latents than TopK", "dead", feature, topk)
    without = "mutual_choice_k4_without_zipf"
    for figure in ("dead", "dying"):
        yield compared(
            found, f"aux_zipf leaves fewer {figure} latents than AuxK alone", figure, mutual, without
        )
    yield compared(found, "Mutual Choice reconstructs better than TopK at equal L0", "fvu", mutual, "topk_k4")
    yield compared(
        found,
        "Zipf's m_i reconstruct better than uniform ones",
        "fvu",
        "feature_choice_zipf_k4",
        "feature_choice_k4",
    )


def probabilistic(found: Figures) -> Iterator[str]:
    for k in (4, 8, 16, 32):
        names = f"probabilistic_topk_k{k}", f"topk_k{k}"
        yield compared(found, f"Probabilistic TopK has a lower MSE than TopK at K = {k}", "mse", *names)
        yield compared(found, f"... and fewer dead latents at K = {k}", "dead", *names)
    for ablation in ("no_magnitude", "no_layer_norm", "sigmoid"):
        worse = f"probabilistic_topk_k8_{ablation}"
        yield compared(found, f"Without ({ablation}) it is worse", "mse", "probabilistic_topk_k8", worse)


def sampled(found: Figures) -> Iterator[str]:
    for pool in (10, 100):
        name = f"sampled_squared_l2_l{pool}_k16"
        yield compared(
            found,
            f"Squared-l2 with ℓ = {pool} has more latents active on over 10 % of the rows than BatchTopK",
            "over_10",
            "batch_topk_k16",
            name,
        )
    for score in ("squared_l2", "entropy", "uniform"):
        one, ten, hundred = (f"sampled_{score}_l{pool}_k16" for pool in (1, 10, 100))
        yield compared(found, f"FVU falls with ℓ, {score}, from 1 to 10", "fvu", ten, one)
        yield compared(found, f"... from 10 to 100, {score}", "fvu", hundred, ten)


def synthetic(found: Figures) -> Iterator[str]:
    yield "The paper gives no recovery; it reports an FVE of about 0.99 for BatchTopK, less for others."
    for name in list(found)[1:]:
        yield compared(found, f"{name} reconstructs worse than BatchTopK", "fvu", "batch_topk_k60", name)


VERDICTS: dict[str, Callable[[Figures], Iterator[str]]] = {
    "choice": choice,
    "probabilistic": probabilistic,
    "sampled": sampled,
    "synthetic": synthetic,
}
