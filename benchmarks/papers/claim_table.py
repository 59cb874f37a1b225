"""The claims of one paper on the page: outcomes by k, and under them the figures of each verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from claim import Claim
from verdicts import Outcome, Verdict

Tested = Sequence[tuple[Claim, Sequence[tuple[int, Verdict]]]]
SHORT = {
    Outcome.HOLDS: "holds",
    Outcome.OPPOSITE: "**opposite**",
    Outcome.UNCERTAIN: "cannot be told",
    Outcome.SATURATED: "saturated",
}


def claims_with_verdicts(every: Tested) -> Iterator[tuple[Claim, Sequence[tuple[int, Verdict]]]]:
    """Those with verdicts. A text that goes on from a claim without ("... and") has that one's before it."""
    first, is_shown = "", False
    for claim, verdicts in every:
        goes_on = claim.text.startswith("...")
        if not goes_on:
            first, is_shown = claim.text, bool(verdicts)
        if verdicts:
            yield (
                (claim if not goes_on or is_shown else replace(claim, text=f"{first} {claim.text}")),
                verdicts,
            )


def claim_table(tested: Tested) -> Iterator[str]:
    """Claim by k, and why where it does not come out.

    Args:
        tested: each claim with its verdict for every k, ascending.
    """
    ks = sorted({k for _, verdicts in tested for k, _ in verdicts})
    yield f"| claim | where | {' | '.join(f'k = {k}' for k in ks)} | why, where it does not hold |"
    yield "|---" * (len(ks) + 3) + "|"
    for claim, verdicts in tested:
        outcomes = {k: verdict.outcome for k, verdict in verdicts}
        cells = [SHORT[outcomes[k]] if k in outcomes else "–" for k in ks]
        why = claim.why if set(outcomes.values()) & {Outcome.OPPOSITE, Outcome.UNCERTAIN} else ""
        yield f"| {claim.text} | {claim.where} | {' | '.join(cells)} | {why} |"


def figures_of_verdicts(tested: Tested) -> Iterator[str]:
    """The figures that each verdict rests on, folded away."""
    yield "<details><summary>The figures of each verdict</summary>"
    yield ""
    for claim, verdicts in tested:
        yield f"- {claim.text} ({claim.where}):"
        for k, verdict in verdicts:
            yield f"  - k = {k}: {verdict}"
    yield ""
    yield "</details>"
