"""A judge's explanations of latents, as lines of Neuronpedia's table ``Explanation``.

The names of the fields are those of Neuronpedia's code (prisma/schema.prisma, batch-autointerp.py). Its
import has no scores of explanations, so ``notes`` holds them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...train import SAE
from ..results import Interpretation, JudgeScore, LatentInterpretation, SaeResult, read_results


def find_interpretation(sae: SAE, latents: Path, results: Path | None) -> Interpretation | None:
    """What ``saecache interpret`` added to the results of an SAE.

    Args:
        latents: the folder of its latents, ``results.latents/<name>``.
        results: the results. If None, those that the folder of latents belongs to are taken if they are
            there, and need not be interpreted.

    Returns:
        None if ``results`` is None and there are no results, or no explanations in them.

    Raises:
        UsageError: the results are not of this SAE, or ``results`` has no explanations of it.
    """
    path = results or latents.parent.with_suffix(".json")
    if results is None and not path.exists():
        return None
    measured = [one for one in read_results(path).saes if _is_of(one, sae)]
    if not measured:
        raise UsageError(
            f"{path} was not measured on SAE {sae.cfg.name} with the weights that it has now: name its own "
            "results with --results, or measure again with 'saecache evaluate'"
        )
    found = next((one.interpretation for one in measured if one.interpretation is not None), None)
    if found is None and results is not None:
        raise UsageError(
            f"{path} has no explanations of SAE {sae.cfg.name}: ask a judge for them first, with 'saecache "
            "interpret'"
        )
    return found


def _is_of(result: SaeResult, sae: SAE) -> bool:
    """Whether a result is of this SAE: of its weights, or of its name in files that do not name weights."""
    same = result.is_of_weights(sae.weights_sha256())
    return result.name == sae.cfg.name if same is None else same


def explanation_lines(
    interpretation: Interpretation | None, latents: range, type_name: str | None, model_name: str | None
) -> Iterator[dict[str, Any]]:
    """The lines of those of ``latents`` that the judge explained.

    ``type_name`` and ``model_name`` refer to tables of Neuronpedia, which refuses names that it does not
    know; None leaves them open.
    """
    for one in interpretation.latents if interpretation is not None else ():
        text = " ".join((one.explanation or "").split())
        if one.index in latents and text:
            assert interpretation is not None
            yield {
                "index": str(one.index),
                "description": text,
                "notes": _describe(one, interpretation.judge),
                "typeName": type_name,
                "explanationModelName": model_name,
            }


def _describe(latent: LatentInterpretation, judge: str) -> str:
    """The judge and its scores in words."""
    parts = [f"explained by {judge} (saecache interpret)"]
    for name, score in (("detection", latent.detection), ("fuzzing", latent.fuzzing)):
        if score is not None and score.balanced_accuracy is not None:
            parts.append(f"{name} {score.balanced_accuracy:.3f}{_interval(score)}")
    return "; ".join(parts) + (" (balanced accuracies)" if len(parts) > 1 else "")


def _interval(score: JudgeScore) -> str:
    return "" if score.interval is None else f", 95 % {score.interval[0]:.3f} to {score.interval[1]:.3f}"
