"""The tables of the papers' page, each from the JSON of one section."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

from claim import LAYER, Claim
from learning_rates import fvu_by_rate, rate_of_arm
from verdicts import Figures, Outcome, compare, show


def by_number(name: str) -> list[tuple[bool, int, str]]:
    """Orders names by their parts, numbers among them as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def table(found: Figures, columns: Sequence[str]) -> Iterator[str]:
    yield f"| arm | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, values in found.items():
        yield f"| {name} | {' | '.join(show(values[c]) if c in values else '–' for c in columns)} |"


def gates(found: Mapping[str, Any], rows: int) -> Iterator[str]:
    """What the noisy gates of Probabilistic TopK choose, by temperature."""
    yield from ("", "### Why Probabilistic TopK differs in training", "")
    yield (
        "The share of the latents chosen without noise that are also chosen with it, at several temperatures "
        "β, with the trained weights of the first seed; and FVU of both choices at the last temperature. "
        "As β falls, the gate becomes a draw of probability σ(LayerNorm(a)), whose noise fades no further: "
        "the weights are trained for it until the last step, while inference has none. The claim about a "
        "sigmoid gate above says what the same training comes to without noise, for the k that it names. FVU "
        f"is of the first {rows:,} held-out rows, and so is not that of the tables above."
    )
    betas = next(iter(found.values()))["beta"]
    headings = ["arm", *(f"same at β = {beta:g}" for beta in betas), "FVU without noise", "FVU with noise"]
    yield from ("", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|")
    for arm in sorted(found, key=by_number):
        values = found[arm]
        cells = [arm, *(f"{share:.0%}" for share in values["same"])]
        cells += [f"{values[name][-1]:.4f}" for name in ("fvu", "fvu with noise")]
        yield f"| {' | '.join(cells)} |"


def synthetic(section: Mapping[str, Any]) -> Iterator[str]:
    """Sampled-SAE's section 4: reconstruction and recovery on rows of known features."""
    yield from ("", "### Rows of known features (Sampled-SAE, section 4)", "")
    yield (
        f"{section['rows']:,} rows are made of 1,024 known directions and noise, k = 60; FVE is 1 − FVU of "
        f"{section['heldout_rows']:,} held-out rows. The paper reports about 0.99 for BatchTopK on the "
        "10,000 rows that it trains on, less for Sampled-SAE, and leaves recovery to later work. What codes "
        "can reach at all, computed from the true directions; but for the true codes themselves, which miss "
        "the noise alone, values are fitted to each row:"
    )
    yield from ("", "| codes | FVE |", "|---|---|")
    for name, value in section["oracle"].items():
        yield f"| {name} | {1 - value:.4f} |"
    yield (
        "\nThe encoder of an SAE is linear: it chooses by projections on fixed directions. With the true "
        "ones it comes to about the third line at best, so that 0.99 on held-out rows needs an encoder that "
        "is better than the true directions. BatchTopK alone, one seed, on rows that it was trained on and "
        "on others:"
    )
    heading = "| training rows | epochs | latents | steps | FVE on training rows | FVE on held-out rows |"
    yield from ("", heading, "|---" * 6 + "|")
    for one in section["alone"]:
        cells = [f"{one[name]:,}" for name in ("train_rows", "epochs", "latents", "steps")]
        cells += [f"{1 - one[f'fvu of {split} rows']:.4f}" for split in ("train", "heldout")]
        yield f"| {' | '.join(cells)} |"
    if arms := section.get("arms"):
        yield from recovery(arms, section["settings"])
    else:
        yield "\nNot measured yet: what each kind reconstructs and recovers of the known features."


def recovery(arms: Figures, settings: Mapping[str, Any]) -> Iterator[str]:
    """What all kinds reconstruct and recover of the known features."""
    yield (
        f"\nKinds without a penalty, {settings['num_latents']:,} latents, {settings['steps']:,} steps of "
        f"{settings['batch_rows']:,} rows. A feature counts as recovered where a latent of its own has a "
        "cosine of 0.7 or more with it. LF and HF are features of low and high frequency, LA and HA of low "
        "and high amplitude."
    )
    figures = list(next(iter(arms.values())))
    yield from ("", f"| arm | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|")
    for arm, values in arms.items():
        yield f"| {arm} | {' | '.join(show(values[figure]) for figure in figures)} |"
    for arm in arms:
        if arm.startswith("sampled") and len(arms[arm]["fvu"]) > 1:
            verdict = compare(arms, "fvu", "batch_topk", arm)
            yield from ("", f"- BatchTopK reconstructs better than {arm} (section 4): {verdict}")


def rates(section: Mapping[str, Any]) -> Iterator[str]:
    """FVU of each kind by learning rate, where the best one is bold."""
    found = fvu_by_rate(section)
    tried = sorted({rate for by_rate in found.values() for rate in by_rate})
    l0 = {(arm["variant"]["kind"], rate_of_arm(name)): arm for name, arm in section["arms"].items()}
    yield from ("", "### Learning rates", "")
    yield (
        f"FVU on the last training batches after {section['settings']['steps']:,} steps, one seed. Twice the "
        "rate was tried for a kind until the best one (bold) had a worse one on either side. ReLU and Gated "
        "are shown at L0 = k, on the line through two coefficients. JumpReLU's L0 in training depends on the "
        "rate; it is in brackets."
    )
    yield from (
        "",
        f"| kind | {' | '.join(f'{rate:g}' for rate in tried)} |",
        "|---" * (len(tried) + 1) + "|",
    )
    for kind, by_rate in found.items():
        best, cells = min(by_rate, key=by_rate.__getitem__), []
        for rate in tried:
            text = (
                "–" if rate not in by_rate else f"{by_rate[rate]:.4f}" if by_rate[rate] < inf else "diverged"
            )
            if kind == "jumprelu" and (kind, rate) in l0:
                text += f" ({l0[kind, rate]['figures']['l0'][0]:.1f})"
            cells.append(f"**{text}**" if rate == best else text)
        yield f"| {kind} | {' | '.join(cells)} |"


def auxiliary_k(section: Mapping[str, Any]) -> Iterator[str]:
    """How many latents end dead, by AuxK's k."""
    arms = section["arms"]
    columns = [c for c in ("fvu", "l0", "dead", "silent") if c in next(iter(arms.values()))["figures"]]
    yield from ("", "### AuxK's k: how many latents end dead", "")
    yield (
        f"One seed, {section['settings']['steps']:,} steps at the smallest k. `aux2` means that AuxK may use "
        "twice k latents in a row."
    )
    yield from ("", f"| arm | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|")
    for arm, values in arms.items():
        yield f"| {arm} | {' | '.join(show(values['figures'][c]) for c in columns)} |"


def layers(found: Figures, claims: Sequence[Claim], hook: str) -> Iterator[str]:
    """The main claims at several layers: whether one layer says what another does."""
    numbers = sorted({int(match.group(1)) for name in found if (match := LAYER.match(name))})
    if not numbers:
        return
    own = int(hook.rpartition(".")[2])
    prefixes = {number: f"layer{number}_" for number in numbers} | {own: ""}
    yield from ("", "### The main claims at other layers", "")
    yield (
        f"The arms of layer {own} above, trained in the same way at other layers; m_i and `aux_zipf` have "
        f"the law that was fitted at layer {own}. *At L0 = k* uses the slope of TopK at the same layer."
    )
    yield from ("", f"| claim | {' | '.join(f'layer {number}' for number in sorted(prefixes))} |")
    yield "|---" * (len(prefixes) + 1) + "|"
    alike = []
    for claim in claims:
        cells, outcomes = {}, set()
        for number, prefix in prefixes.items():
            if verdicts := list(claim.at_layer(prefix).verdicts(found)):
                k, verdict = verdicts[-1]
                a, b = verdict.values
                outcomes.add(verdict.outcome)
                cells[number] = f"{verdict.outcome} ({show(a)}, {show(b)})"
        if set(cells) == set(prefixes):
            where = f"{claim.text} (k = {k}; {claim.figure} of {claim.lower}, {claim.higher})"
            yield f"| {where} | {' | '.join(cells[number] for number in sorted(cells))} |"
            if outcomes != {Outcome.SATURATED}:
                alike.append(len(outcomes) == 1)
    said = "claims come out alike at all of these layers; those that are saturated do not count"
    yield f"\n{sum(alike)} of {len(alike)} {said}."


def peers(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The FVU of our TopK and BatchTopK and of other packages', from what ``benchmarks/fvu.py`` wrote: all at
    one learning rate, and each at its own.
    """
    if not runs:
        return
    first = runs[0]
    yield from ("", "## TopK and BatchTopK of other packages", "")
    yield (
        f"{first['size']}; {first['figures'][0]['rounds']} seeds, which differ in the start only; the same "
        "batches in the same order. FVU is by the rule of training in batches, lower is better; the median, "
        "and the smallest and largest of the seeds. Each SAE is measured by our code and by the other "
        "package's own. Each package keeps its own start, clipping and treatment of the decoder's norm. With "
        "`--scaled` SAELens gets rows of mean norm √D, as its normalization makes them, the others rows of "
        "norm 1. sparsify has no BatchTopK."
    )
    columns = {_heading(run): {(f["group"], f["what"]): f for f in run["figures"]} for run in runs}
    if len(columns) > 1:
        yield (
            "\n*Own rate* is the learning rate that each package takes by default for so many latents, and "
            "for sparsify its default optimizer too. Such rates are meant for runs that are far longer than "
            "this one, so that column says what the defaults come to here, not which package is better."
        )
    yield from ("", *(f"`{run['command']}`\n" for run in runs))
    headings = ["kind", "whose", *columns]
    yield from (f"| {' | '.join(headings)} |", "|---" * len(headings) + "|")
    for group, what in next(iter(columns.values())):
        if not what.startswith("learning rate"):
            cells = [_of_seeds(column, group, what) for column in columns.values()]
            yield f"| {group} | {what} | {' | '.join(cells)} |"


def _heading(run: Mapping[str, Any]) -> str:
    return "own rate" if "learning rate its own" in run["size"] else "same rate"


def _of_seeds(figures: Mapping[tuple[str, str], Mapping[str, Any]], group: str, what: str) -> str:
    """The median and the range, and the learning rate where the package chose it."""
    if (found := figures.get((group, what))) is None:
        return "–"
    text = "{median:.4f} ({low:.4f} to {high:.4f})".format(**found)
    rate = figures.get((group, f"learning rate of {what}"))
    return text if rate is None else f"{text}, rate {rate['median']:.2g}"
