"""The figures of one SAE from what the judge said of its latents."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..metrics.bootstrap import mean_interval
from ..results import Interpretation, JudgeScore, LatentInterpretation, MeanScore
from ..rows import MeasuredRows
from .calibration import measure_calibration
from .config import DECILES, InterpretConfig
from .interview import Interview, bucket_scores

# Settings that change nothing in the figures, and places of the user's machines, which results do not name.
_NOT_RECORDED: Any = {
    "endpoint": {
        "url", "key_variable", "stored_as", "check_model", "concurrency",
        "requests_per_minute", "tokens_per_minute",
        "timeout_seconds", "patience_seconds", "max_retries",
    },
    "embeddings": {"url", "key_variable", "path"},
    **dict.fromkeys(("prompts", "max_calls", "max_tokens", "price", "tokenizer"), True),
    **dict.fromkeys(("device", "rows_per_block"), True),
}  # fmt: skip


def summarize(
    interview: Interview, latents: Sequence[LatentInterpretation], rows: MeasuredRows, num_windows: int
) -> Interpretation:
    """Means over the latents with their intervals, the calibration, and what is missing."""
    config, survey = interview.questioner.config, interview.survey
    calibration = None
    if config.calibration is not None:
        scores_LK = bucket_scores(latents, config.calibration.buckets)
        calibration = measure_calibration(scores_LK, config.seed)
    return Interpretation(
        judge=config.endpoint.model or "",
        prompts_sha256=interview.questioner.prompts.sha256,
        settings=recorded_settings(config),
        rows=rows.count,
        windows=num_windows,
        alive=survey.alive,
        too_few_windows=survey.too_few_windows,
        skipped=list(survey.skipped),
        unanswered=interview.unanswered,
        detection=_mean([latent.detection for latent in latents], config.seed),
        fuzzing=_mean([latent.fuzzing for latent in latents], config.seed),
        calibration=calibration,
        latents=list(latents),
    )


def recorded_settings(config: InterpretConfig) -> dict[str, object]:
    """The settings that the figures depend on."""
    found: dict[str, object] = config.model_dump(mode="json", exclude=_NOT_RECORDED)
    return found


def _mean(scores: Sequence[JudgeScore | None], seed: int) -> MeanScore | None:
    """The mean over the latents that have a score; None if there are none."""
    known = [score for score in scores if score is not None and score.balanced_accuracy is not None]
    if not known:
        return None
    values = np.asarray([score.balanced_accuracy for score in known], dtype=np.float64)
    strata = []
    for number in range(DECILES):
        own = [value for score in known if (value := score.strata[number]) is not None]
        strata.append(float(np.mean(own)) if own else None)
    return MeanScore(
        mean=float(values.mean()),
        strata=strata,
        num_latents=len(known),
        unanswered=sum(score.unanswered for score in scores if score is not None),
        interval=mean_interval(values, seed),
    )
