"""What a judge said, as the page shows it: of each latent, and which latents are unique to an SAE."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results import JudgeScore, Results, SaeResult

MOST_UNIQUE = 8  # latents shown of each pair of SAEs


def describe_explanations(result: SaeResult) -> list[list[Any]]:
    """Of each judged latent: its number, the explanation, the detection score and the fuzzing score, each
    with its interval in words, and a note. What there is not is None.
    """
    if result.interpretation is None:
        return []
    return [
        [one.index, one.explanation, *_score(one.detection), *_score(one.fuzzing), one.note]
        for one in result.interpretation.latents
    ]


def _score(score: JudgeScore | None) -> tuple[float | None, str]:
    if score is None or score.balanced_accuracy is None:
        return None, ""
    words = f"{score.answered} windows answered, {score.unanswered} not"
    if score.interval is not None:
        words = f"95 %: {score.interval[0]:.3f} to {score.interval[1]:.3f}; {words}"
    return score.balanced_accuracy, words


@dataclass(frozen=True, kw_only=True)
class UniqueLatents:
    """The judged latents of SAE ``a`` that SAE ``b`` lacks most; ``sae`` is the number of ``a`` in the page.

    ``latents``: number, explanation, best similarity and largest cosine with any latent of ``b``, in words.
    """

    a: str
    b: str
    sae: int
    similarity: str
    latents: list[tuple[int, str, str, str]]


def list_unique(measured: Sequence[tuple[Path, Results]], names: Sequence[str]) -> list[UniqueLatents]:
    """Of every pair of SAEs that a judge explained together, the latents of the first whose best match in the
    second is worst.

    Args:
        names: those of the SAEs in the page, in the order of the results.
    """
    found: list[UniqueLatents] = []
    start = 0
    for _, results in measured:
        number = {sae.name: start + i for i, sae in enumerate(results.saes)}
        texts = {
            sae.name: {one.index: one.explanation or "" for one in sae.interpretation.latents}
            for sae in results.saes
            if sae.interpretation is not None
        }
        for pair in results.uniqueness:
            if pair.a not in texts or pair.b not in number:
                continue
            found.append(
                UniqueLatents(
                    a=names[number[pair.a]],
                    b=names[number[pair.b]],
                    sae=number[pair.a],
                    similarity=f"{pair.mean_similarity:.3f}",
                    latents=[
                        (
                            match.latent,
                            texts[pair.a].get(match.latent, ""),
                            f"{match.similarity:.3f}",
                            f"{match.nearest_cosine:.3f}",
                        )
                        for match in pair.matches[:MOST_UNIQUE]
                    ],
                )
            )
        start += len(results.saes)
    return found
