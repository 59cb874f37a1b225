"""The table of all kinds of SAE on one cache, and what its columns mean."""

from collections.abc import Iterator, Mapping
from math import inf
from statistics import mean
from typing import Any

from arms import PREFIX, TUNED
from learning_rates import rate_of, rates_to_try
from verdicts import COEFFICIENT, Figures, show

EVERY_KIND = {  # figure -> its heading
    "fvu at L0 = k": "FVU at L0 = k",
    "l0": "L0",
    "ce_recovered": "CE recovered",
    "kl": "KL",
    "dead": "dead",
    "over_10": "over 10 %",
    "mmcs": "MMCS",
    "probe_1": "probe of 1",
    "probe_5": "probe of 5",
    "absorption_fraction": "absorption",
    "full_absorption": "fully absorbed",
    "speed": "rows/s",
}


def every_kind(found: Figures, sections: Mapping[str, Any]) -> Iterator[str]:
    """All kinds at one L0, each at its own learning rate, in the order of their FVU."""
    tuned = [sections[name] for name in TUNED if name in sections]
    if not tuned:
        return
    trained_at = {  # each section has the rates that it was trained with
        COEFFICIENT.sub("", name): rate_of(arm["variant"]["kind"], section["rates"])
        for section in tuned
        for name, arm in section["arms"].items()
    }
    kinds = list(trained_at)
    k = next(iter(kinds)).rpartition("_k")[2]
    yield from ("", "### Every kind on the same rows", "")
    yield (
        f"Each kind at about {k} active latents a row, with the learning rate that section `rates` found "
        "best for it (below), in the order of their FVU. ReLU and Gated have no k: each was trained with two "
        "L1 coefficients, and stands on the line through both at this L0. JumpReLU's thresholds were "
        f"calibrated to it. *FVU at L0 = {k}* is brought to exactly this L0; the other columns are of the "
        "SAE as it is, with the L0 that stands there. `mutual` is Mutual Choice, `zipf_after_mutual` Feature "
        "Choice after it, `sampled` Sampled-SAE with squared ℓ2 and ℓ = 10."
    )
    if "probing" in sections:
        yield from probed(sections["probing"]["probing"])
    if "absorption" in sections:
        yield from absorbed(sections["absorption"]["absorption"])
    speeds = sections.get("speed", {}).get("speed", {})
    found = {name: {**found[name], **speed_of(name, speeds)} for name in kinds}
    if speeds:
        yield (
            "\n*rows/s* is the speed of training against TopK's in the same turn, in processor time of one "
            f"thread, on steps {speeds['steps'][0]} to {speeds['steps'][1]}, when no latent is dead yet: "
            f"mean and standard deviation of {speeds['rounds']} turns. A step of TopK took "
            f"{mean(speeds['topk_seconds']):.3f} s; the machine had other work (a load of "
            f"{speeds['load_before']:g}), so small differences say nothing."
        )
    shown = {f: heading for f, heading in EVERY_KIND.items() if any(f in one for one in found.values())}
    headings = ["kind", "learning rate", *shown.values()]
    yield from ("", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|")
    fvu = {name: mean(found[name].get("fvu at L0 = k", [inf])) for name in kinds}
    for name in sorted(kinds, key=fvu.__getitem__):
        cells = [name.removeprefix(PREFIX).rpartition("_k")[0], f"{trained_at[name]:g}"]
        cells += [show(found[name][f]) if f in found[name] else "–" for f in shown]
        yield f"| {' | '.join(cells)} |"
    yield (
        "\nThe learning rates were chosen in trainings of half the length, on the last training batches, "
        "among rates that differ by a factor of two."
    )
    if "rates" in sections and (missing := rates_to_try(sections["rates"])):
        yield (
            f"The best rate of {', '.join(sorted(missing))} is at the end of what was tried: one beyond it "
            "may be better still."
        )


def probed(probing: Mapping[str, Any]) -> Iterator[str]:
    """What the columns of probing mean."""
    model = probing["model"]
    yield (
        "\n*Probe of 1* and *of 5* are the accuracies of k-sparse probes, which see the mean of a passage's "
        "codes and of these only so many latents: which of the packages "
        f"{', '.join(probing['packages'])} of Python's standard library is the passage from? A probe is "
        "asked of one package at a time and half of its passages are of it, so chance is 0.5; "
        f"{probing['train_texts']} passages train, {probing['test_texts']} test. The same probes of the "
        f"model's own activations reach {model['probe_1']:.3f} and {model['probe_5']:.3f}, and "
        f"{model['probe_all']:.3f} if they see all."
    )


def absorbed(absorption: Mapping[str, Any]) -> Iterator[str]:
    """What the columns of absorption mean, or why there are none."""
    if absorption["refused"]:
        yield f"\nAbsorption of first letters could not be measured: {absorption['refused']}"
        return
    letters = absorption["letters"].values()
    least = min(one["probe_f1"] for one in letters)
    seen = sum(one["words"] for one in letters)
    yield (
        "\n*Absorption* is SAEBench's: the share of a word's first letter that up to three other latents "
        "hold instead of the letter's main ones, and *fully absorbed* the share of words on which the main "
        f"ones are silent and another holds it. Of {absorption['words']:,} words of the vocabulary "
        f"{absorption['test_words']:,} are for testing. Probes of the model's activations find "
        f"{len(letters)} letters with an F1 of {least:.2f} or more, and see the letter of {seen:,} of the "
        "test words. An SAE without any latent for letters absorbs nothing."
    )


def speed_of(name: str, speeds: Mapping[str, Any]) -> dict[str, list[float]]:
    """The speed of an arm, turn by turn; the mean of both arms where it has two coefficients."""
    arms = [values for arm, values in speeds.get("speed", {}).items() if COEFFICIENT.sub("", arm) == name]
    return {"speed": [mean(turn) for turn in zip(*arms, strict=True)]} if arms else {}
