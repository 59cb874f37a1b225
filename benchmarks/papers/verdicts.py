"""The claims behind the tables of ``claims.py``, each put against its figures."""

from collections.abc import Callable, Iterator, Mapping
from statistics import mean, stdev

Figures = Mapping[str, Mapping[str, list[float]]]  # variant -> figure -> value for each seed


def compared(found: Figures, claim: str, figure: str, lower: str, higher: str) -> str:
    """Whether ``lower`` has less of ``figure`` than ``higher``."""
    a, b = found[lower][figure], found[higher][figure]
    verdicts = {1: "comes out here", -1: "the opposite comes out here", 0: "no difference here"}
    return _sentence(claim, figure, lower, higher, a, b, verdicts[_sign(a, b)])


def alike(found: Figures, claim: str, figure: str, one: str, other: str) -> str:
    """Whether two variants have the same ``figure``."""
    a, b = found[one][figure], found[other][figure]
    return _sentence(
        claim, figure, one, other, a, b, "the opposite comes out here" if _sign(a, b) else "comes out here"
    )


def _sign(a: list[float], b: list[float]) -> int:
    """1 if b is larger than a, -1 if it is smaller: by both standard deviations, and for every seed."""
    differences = [y - x for x, y in zip(a, b, strict=True)]
    if abs(mean(differences)) <= stdev(a) + stdev(b):
        return 0
    return 1 if min(differences) > 0 else -1 if max(differences) < 0 else 0


def _sentence(
    claim: str, figure: str, one: str, other: str, a: list[float], b: list[float], verdict: str
) -> str:
    if len({*a, *b}) == 1:  # every latent, or none: both are at a limit of the figure
        return f"{claim}: **cannot be told here** ({figure} {a[0]:.4g} in every run of both)."
    return f"{claim}: **{verdict}** ({figure} {mean(a):.4g} of {one}, {mean(b):.4g} of {other})."


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
    full = "probabilistic_topk_k8"
    without = {name: f"{full}_{name}" for name in ("no_magnitude", "sigmoid", "no_layer_norm")}
    yield compared(
        found, "Scores without the magnitude are worse (section 5.1)", "mse", full, without["no_magnitude"]
    )
    yield compared(
        found, "A sigmoid in place of the gate is worse (section 5.1)", "mse", full, without["sigmoid"]
    )
    yield alike(
        found, "Without LayerNorm it is about as good (section 5.1)", "mse", full, without["no_layer_norm"]
    )


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
