"""The tables of the papers' page, each from the JSON of one section."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from statistics import mean
from typing import Any

from arms import PREFIX, TUNED
from verdicts import COEFFICIENT, Figures, compare, show

EVERY_KIND = {  # figure -> its heading
    "fvu at L0 = k": "FVU at L0 = k",
    "l0": "L0",
    "ce_recovered": "CE recovered",
    "kl": "KL",
    "dead": "dead",
    "over_10": "over 10 %",
    "mmcs": "MMCS",
}


def table(found: Figures, columns: Sequence[str]) -> Iterator[str]:
    yield f"| arm | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, values in found.items():
        yield f"| {name} | {' | '.join(show(values[c]) if c in values else '–' for c in columns)} |"


def gates(found: Mapping[str, Any]) -> Iterator[str]:
    """What the noisy gates of Probabilistic TopK choose, by temperature."""
    yield from ("", "### Why Probabilistic TopK differs in training", "")
    yield (
        "The share of the latents chosen without noise that are chosen with it, and FVU of both choices with "
        "the trained weights (first seed). As β falls, the gate becomes a draw of probability "
        "σ(LayerNorm(a)): the noise of the choice does not fade with β, and the weights are trained for it "
        "until the last step, while inference has none. The claim about a sigmoid gate above says what the "
        "same training comes to without noise."
    )
    yield from (
        "",
        "| arm | β | same latents | FVU without noise | FVU with noise |",
        "|---|---|---|---|---|",
    )
    for arm, values in found.items():
        for row in zip(*(values[name] for name in ("beta", "same", "fvu", "fvu with noise")), strict=True):
            beta, same, clean, noisy = row
            yield f"| {arm} | {beta:g} | {same:.0%} | {clean:.4f} | {noisy:.4f} |"


def synthetic(section: Mapping[str, Any]) -> Iterator[str]:
    """Sampled-SAE's section 4: reconstruction and recovery on rows of known features."""
    settings = section["settings"]
    yield from ("", "### Rows of known features (Sampled-SAE, section 4)", "")
    yield (
        f"{section['rows']:,} rows, {settings['steps']:,} steps of {settings['batch_rows']:,}, "
        f"{settings['num_latents']:,} latents, k = 60; {section['heldout_rows']:,} held-out rows measured. "
        "The paper reports an FVE (1 − FVU) of about 0.99 for BatchTopK on rows that it trains on, less for "
        "Sampled-SAE, and leaves recovery to later work."
    )
    for name, value in section["oracle"].items():
        yield f"The best possible: {name}: {value:.4f}."
    yield ""
    figures = list(next(iter(section["arms"].values())))
    yield f"| arm | {' | '.join(figures)} |"
    yield "|---" * (len(figures) + 1) + "|"
    for arm, values in section["arms"].items():
        yield f"| {arm} | {' | '.join(show(values[figure]) for figure in figures)} |"
    for arm in section["arms"]:
        if arm.startswith("sampled"):
            verdict = compare(section["arms"], "fvu", "batch_topk", arm)
            yield from ("", f"- BatchTopK reconstructs better than {arm} (section 4): {verdict}")


def one_seed(sections: Mapping[str, Any]) -> Iterator[str]:
    """The sweeps that were run with one seed: learning rates, and AuxK's k."""
    titles = {
        "rates": "Learning rates (at the end of training)",
        "auxiliary_k": "AuxK's k: how many latents end dead",
    }
    for name, title in titles.items():
        if name not in sections:
            continue
        arms = sections[name]["arms"]
        columns = [c for c in ("fvu", "l0", "dead", "silent") if c in next(iter(arms.values()))["figures"]]
        yield from ("", f"### {title}", "", f"| arm | {' | '.join(columns)} |")
        yield "|---" * (len(columns) + 1) + "|"
        for arm, values in arms.items():
            yield f"| {arm} | {' | '.join(show(values['figures'][c]) for c in columns)} |"


def every_kind(found: Figures, sections: Mapping[str, Any]) -> Iterator[str]:
    """All kinds at one L0, each at its own learning rate, in the order of their FVU."""
    tuned = [sections[name] for name in TUNED if name in sections]
    arms = {name: arm for section in tuned for name, arm in section["arms"].items()}
    if not arms:
        return
    kinds = {COEFFICIENT.sub("", name): arm["variant"]["kind"] for name, arm in arms.items()}
    k = next(iter(kinds)).rpartition("_k")[2]
    yield from ("", "### Every kind on the same rows", "")
    yield (
        f"Each kind at {k} active latents a row on average, with the learning rate that section `rates` "
        "found best for it (below), in the order of their FVU. ReLU and Gated have no k: each was trained "
        "with two L1 coefficients, and stands on the line through both at this L0. JumpReLU's thresholds "
        "were calibrated to it. Where only one k was run, an FVU at exactly this L0 is not known. `mutual` "
        "is Mutual Choice, `zipf_after_mutual` Feature Choice after it, `sampled` Sampled-SAE with squared "
        "ℓ2 and ℓ = 10."
    )
    headings = ["kind", "learning rate", *EVERY_KIND.values()]
    yield from ("", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|")
    fvu = {name: mean(found[name].get("fvu at L0 = k", [inf])) for name in kinds}
    for name in sorted(kinds, key=fvu.__getitem__):
        cells = [name.removeprefix(PREFIX).rpartition("_k")[0], f"{tuned[0]['rates'][kinds[name]]:g}"]
        cells += [show(found[name][f]) if f in found[name] else "–" for f in EVERY_KIND]
        yield f"| {' | '.join(cells)} |"
    yield (
        "\nThe learning rates were chosen in trainings of half the length, on the last training batches. "
        "Where the best one is the largest that was tried, a larger one may be better still."
    )


def peers(run: Mapping[str, Any]) -> Iterator[str]:
    """The FVU of our TopK and BatchTopK and of other packages', from what ``benchmarks/fvu.py`` wrote."""
    yield from ("", "## TopK and BatchTopK of other packages", "")
    yield (
        f"{run['size']}; {run['figures'][0]['rounds']} seeds, which differ in the start only; the same "
        "batches in the same order. FVU is by the rule of training in batches, lower is better; the median, "
        "and the smallest and largest of the seeds. Each SAE is measured by our code and by the other "
        "package's own. All have the same learning rate; each package keeps its own start, clipping and "
        "treatment of the decoder's norm. With `--scaled` SAELens gets rows of mean norm √D, as its "
        "normalization makes them, the others rows of norm 1. sparsify has no BatchTopK."
    )
    yield from ("", f"`{run['command']}`", "")
    yield from ("| kind | whose | median | smallest | largest |", "|---|---|---|---|---|")
    for figure in run["figures"]:
        values = " | ".join(f"{figure[name]:.4f}" for name in ("median", "low", "high"))
        yield f"| {figure['group']} | {figure['what']} | {values} |"
