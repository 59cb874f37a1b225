"""Makes docs/papers.md and its figures (docs/papers/*.svg) from the JSON files of the claims run alone.

python benchmarks/papers/page.py [--results benchmarks/results/papers] [--out docs/papers.md]
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arms import ONE_SEED, SECTIONS
from claim import with_equal_l0
from claim_table import claim_table, claims_with_verdicts, figures_of_verdicts
from claims import CHOICE, CLAIMS
from every_kind_table import every_kind
from forms import FORMS
from growth import growth
from pictures import pictures
from run import parts
from tables import auxiliary_k, by_number, gates, layers, peers, rates, synthetic, table
from verdicts import Outcome

ROOT = Path(__file__).parents[2]
ORDER = ("full", "medium", "demo", "short")  # in the order of the page
TITLES = {
    "full": "a pretrained model",
    "medium": "a pretrained model, smaller and shorter",
    "demo": "the demo model",
    "short": "the demo model, to see that it works",
}
TABLE = ("fvu", "l0", "fvu at L0 = k", "fvu_batch", "ce_recovered", "kl", "dead", "silent", "over_10", "mmcs")
INTRODUCTION = """\
# What the papers claim, and what comes out here

saecache implements three papers about sparse autoencoders (SAEs). This page tests what they claim, on
activations of a real language model and of the small model that comes with the code:

- *Adaptive Sparse Allocation with Mutual Choice & Feature Choice SAEs*: rows and latents are matched over a
  whole batch (Mutual Choice), or each latent gets a fixed number of rows (Feature Choice);
- *Probabilistic TopK SAE*: noisy gates decide in training which latents a row gets;
- *Distribution-Aware Feature Selection for SAEs* (Sampled-SAE): BatchTopK among the latents that score best
  on the batch.

If you only want to choose a kind of SAE, read [the table of every kind](#every-kind-on-the-same-rows).

**How a claim is tested.** Each claim is in our words, with the section that makes it. Its two arms, that is,
kinds of SAE with their settings, are trained with paired seeds, and are alike in data, width, batches, steps
and all else but what the claim names; kinds that have AuxK have the same. Losses *at L0 = k* are brought to
an equal mean number of active latents (L0); other figures are of the SAE as it is. An arm is named after its
kind and k (`topk_k8`, `mutual_without_zipf_k8`); arms named `tuned_...` have the learning rate that suits
their kind instead of the common one.

**What a verdict says.** "Holds here" needs a difference larger than both standard deviations together, of the
same sign for every seed; so does "the opposite holds here". Otherwise it "cannot be told", and where both
arms are at a limit of the figure in every run, the verdict says "saturated". A claim that two arms are alike
holds where their means differ by at most 2 %. Questions of our own, marked (ours), are not counted in the
table of outcomes. A claim that does not come out here may still hold at the papers' sizes: the SAEs are small
and the runs short. Not tested here: claims that need a judge (interpretability scores), that
the first token of a text gets few latents (its rows are not in the cache), that dead latents stay rare in
SAEs of millions of latents, and that absorption falls with Sampled-SAE (this model cannot spell well enough).

**Made by:** `make papers` trains, measures and writes this page; it continues where it was interrupted.
`make papers-short` proves in ten minutes that everything works. Every figure is from a JSON file in
`benchmarks/results/papers/`.

**Figures.** `fvu` (the share of the variance that is missed, lower is better), `mse`, `l0`, `ce_recovered`
(of the model's loss when the SAE stands in: 1 is the unchanged model, 0 the activation set to zero) and `kl`
are of held-out documents by the rule of inference; thresholds were calibrated on other held-out documents.
*At L0 = k* is the loss brought to exactly that L0 along the arm's own losses at k and at the next k on that
side, or, where the arm has one k only, along those of TopK. `fvu_batch` is by the rule of training in full
batches. `dead` latents had not fired on so many training rows as stated when training ended;
`silent` ones fired on none of the held-out rows. `over_10` is the share of latents active on over 10 % of
rows, `mmcs` the mean max cosine similarity with the next seed. A row is hard to reconstruct (`hardest`,
`easiest`) where much is left of it if every row gets the same number of the SAE's latents."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "papers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "papers.md")
    settings = parser.parse_args()
    figures = settings.out.parent / settings.out.stem
    figures.mkdir(parents=True, exist_ok=True)
    read = {form: read_form(settings.results / form) for form in ORDER}
    read = {form: sections for form, sections in read.items() if sections}
    lines = [INTRODUCTION, "", *summary(read)]
    for form, sections in read.items():
        lines += ["", *chapter(form, sections, figures)]
    against = sorted(settings.results.glob("fvu*.json"), key=lambda file: file.stem)
    lines += peers([json.loads(file.read_text("utf-8")) for file in against])
    settings.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_form(folder: Path) -> dict[str, dict[str, Any]]:
    """Section -> what was measured, smaller k first."""
    files = sorted(folder.glob("*.json"), key=lambda file: by_number(file.stem))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def arms_of(sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every arm that was trained with several seeds, of all sections, with what was measured afterwards."""
    later = [sections.get(name, {}).get(name, {}).get("figures", {}) for name in ("probing", "absorption")]
    return {
        name: {**arm, "figures": {**arm["figures"], **later[0].get(name, {}), **later[1].get(name, {})}}
        for section in sections.values()
        for name, arm in section.get("arms", {}).items()
        if len(arm["seeds"]) > 1
    }


def figures_of(sections: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    return with_equal_l0({name: arm["figures"] for name, arm in arms_of(sections).items()})


def tested_figures(sections: Mapping[str, Any]) -> dict[str, Mapping[str, list[float]]]:
    """What claims compare: figures of the arms, and of parts of their rows."""
    parts = sections.get("adaptive", {}).get("adaptive", {}).get("arms", {})
    return {**figures_of(sections), **{name: part["figures"] for name, part in parts.items()}}


def summary(read: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """How many verdicts of each paper have which outcome, by form. Our own questions do not count."""
    yield "| paper | cache | " + " | ".join(Outcome) + " |"
    yield "|---|---|" + "---|" * len(Outcome)
    for paper, claims in CLAIMS.items():
        for form, sections in read.items():
            found = tested_figures(sections)
            theirs = [claim for claim in claims(found) if not claim.ours]
            outcomes = [verdict.outcome for claim in theirs for _, verdict in claim.verdicts(found)]
            if outcomes:
                counts = " | ".join(str(outcomes.count(outcome)) for outcome in Outcome)
                yield f"| {paper} | {TITLES[form]} | {counts} |"


def chapter(form: str, sections: Mapping[str, Any], figures: Path) -> Iterator[str]:
    """Everything about one form: what was run, claims with verdicts, tables and figures."""
    found, arms, tested_by = figures_of(sections), arms_of(sections), tested_figures(sections)
    yield f"## On {TITLES[form]}"
    yield ""
    yield from conditions(form, sections)
    yield from every_kind(found, sections)
    for paper, claims in CLAIMS.items():
        every = [(claim, list(claim.verdicts(tested_by))) for claim in claims(tested_by)]
        if tested := list(claims_with_verdicts(every)):
            yield from ("", f"### {paper}", "", *claim_table(tested))
            yield from ("", *figures_of_verdicts(tested), "")
            yield from pictures(form, paper, found, arms, figures)
    if found:
        yield from layers(found, CHOICE, FORMS[form].hook)
        yield from ("", "### All arms", "")
        yield from table(found, [figure for figure in TABLE if any(figure in f for f in found.values())])
    if "rates" in sections:
        yield from rates(sections["rates"])
    if "auxiliary_k" in sections:
        yield from auxiliary_k(sections["auxiliary_k"])
    yield from growth(sections, found, FORMS[form])
    if "gates" in sections:
        yield from gates(sections["gates"]["gates"], sections["gates"]["rows"])
    if "synthetic" in sections:
        yield from synthetic(sections["synthetic"]["synthetic"])


def conditions(form: str, sections: Mapping[str, Any]) -> Iterator[str]:
    """What was run, from the settings that the files hold."""
    every = [section for section in sections.values() if "arms" in section]
    main = [
        section for name, section in sections.items() if name in SECTIONS and name not in ONE_SEED
    ] or every
    settings, cache = main[0]["settings"], main[0]["cache"]
    steps = sorted({section["settings"]["steps"] for section in main})
    seeds = sorted({seed for section in every for arm in section["arms"].values() for seed in arm["seeds"]})
    zipf = next((section["zipf"] for name, section in sections.items() if name.startswith("choice_k")), None)
    yield (
        f"{cache['model']}, {settings['hook']} (width {cache['width']}), a cache of {cache['tokens']:,} "
        f"tokens with {cache['train_rows']:,} training rows; {settings['num_latents']:,} latents, "
        f"{' or '.join(map(str, steps))} steps of {settings['batch_rows']:,} rows, seeds "
        f"{', '.join(map(str, seeds))}; {cache['measured_rows']:,} held-out rows measured. A latent counts "
        f"as dead after {settings['dead_after_rows']:,} rows; AuxK's k is twice k; the peak learning rate is "
        f"{settings['optimizer']['learning_rate']:g}, but for the arms `tuned_...`."
    )
    if zipf:
        yield (
            f"Zipf's law for `aux_zipf` and m_i: alpha = {zipf['alpha']:g}, beta = {zipf['beta']:g}, fitted "
            "to the densities of BatchTopK at the smallest k."
        )
    full = FORMS["full"]
    if form != "full":
        yield (
            f"\nThis is the form `{form}`: small SAEs and short runs. The form `full` has "
            f"{full.num_latents:,} latents, {full.steps:,} steps of {full.batch_rows:,} rows, "
            f"k = {', '.join(map(str, full.ks))}, CE and KL on {full.ce_tokens:,} tokens, and a latent "
            f"counts as dead after {full.dead_after_rows:,} rows: `make papers PAPERS_FORM=full`.\n"
        )
    failed = {name: why for section in every for name, why in section["failed"].items()}
    for name, why in failed.items():
        yield f"`{name}` stopped early: {why}."
    yield f"Measured: {', '.join(sections)}."
    names = [name for name, _, _ in parts(FORMS[form])]
    if missing := [
        name
        for name in (*names, "adaptive", "gates", "speed", "probing", "absorption", "synthetic")
        if name not in sections
    ]:
        yield f"Not measured yet, so that claims about them are missing: {', '.join(missing)}."


if __name__ == "__main__":
    main()
