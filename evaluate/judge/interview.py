"""The conversation with a judge about the latents of one SAE: what it costs, then what it says.

Explanations come first, because the scores depend on them; within each of the two rounds calls are made at
once, of all latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from ..results import BucketInterpretation, JudgeScore, LatentInterpretation
from .calls import Call, Caller, Unanswered
from .config import DECILES
from .cost import TYPICAL_EXPLANATION, Estimate
from .questions import Questioner, ScoreCalls
from .survey import Survey

T = TypeVar("T")
_WHOLE = -1  # the number of the "bucket" that is all of a latent's windows


@dataclass
class Interview:
    """One SAE's latents and the judge. ``unanswered`` counts calls without a usable answer, by purpose."""

    survey: Survey
    questioner: Questioner
    caller: Caller
    unanswered: dict[str, int] = field(default_factory=dict)

    def estimate(self) -> Estimate:
        """The calls that are still to be made. Scores whose explanation is not known yet are counted with a
        typical one.
        """
        found = Estimate()
        for number in range(len(self.survey.examples)):
            for bucket, call in self._explanation_calls(number):
                outcome = self.caller.find(call)
                found = _add(found, call, "explanations", missing=outcome is None)
                if isinstance(outcome, Unanswered):
                    continue
                for _, calls in self._score_calls(number, bucket, outcome or TYPICAL_EXPLANATION):
                    for one in calls.calls:
                        missing = outcome is None or self.caller.find(one) is None
                        found = _add(found, one, "scores", missing=missing)
        return found

    def sample_prompts(self) -> list[tuple[str, Call[Any]]]:
        """One call of each purpose, of the first latent."""
        (bucket, call), *_ = self._explanation_calls(0)
        known = self.caller.find(call)
        explanation = known if isinstance(known, str) else TYPICAL_EXPLANATION
        scores = self._score_calls(0, bucket, explanation)
        return [("explanation", call), *((purpose, calls.calls[0]) for purpose, calls in scores)]

    def hold(self, name: str, *, show_progress: bool) -> list[LatentInterpretation]:
        """Ask everything.

        Raises:
            EndpointError: the server is out of order; what it answered is stored.
        """
        places = [
            (number, bucket, call)
            for number in range(len(self.survey.examples))
            for bucket, call in self._explanation_calls(number)
        ]
        outcomes = self._make(
            [call for *_, call in places], f"{name}: explanations", "explanation", show_progress
        )
        explanations = {
            (number, bucket): outcome if isinstance(outcome, str) else None
            for (number, bucket, _), outcome in zip(places, outcomes, strict=True)
        }
        asked = [
            (number, bucket, purpose, score)
            for (number, bucket), explanation in explanations.items()
            if explanation is not None
            for purpose, score in self._score_calls(number, bucket, explanation)
        ]
        questions = [one for *_, score in asked for one in score.calls]
        marks = self._make(questions, f"{name}: scores", "score", show_progress)
        remaining = iter(marks)
        scores: dict[tuple[int, int, str], JudgeScore] = {}
        for number, bucket, purpose, score in asked:
            own = [next(remaining) for _ in score.calls]
            num_strata = DECILES if bucket == _WHOLE else 0
            scores[number, bucket, purpose] = score.score(own, num_strata, self.questioner.config.seed)
        return [
            self._interpretation(number, explanations, scores) for number in range(len(self.survey.examples))
        ]

    def _interpretation(
        self,
        number: int,
        explanations: dict[tuple[int, int], str | None],
        scores: dict[tuple[int, int, str], JudgeScore],
    ) -> LatentInterpretation:
        examples = self.survey.examples[number]
        explanation = explanations.get((number, _WHOLE))
        notes = [examples.without_buckets]
        if (number, _WHOLE) in explanations and explanation is None:
            notes.append("the judge gave no readable explanation")
        return LatentInterpretation(
            index=examples.latent,
            density=float(self.survey.density[examples.latent]),
            num_windows=examples.num_active,
            explanation=explanation,
            detection=scores.get((number, _WHOLE, "detection")),
            fuzzing=scores.get((number, _WHOLE, "fuzzing")),
            buckets=[
                BucketInterpretation(
                    explanation=explanations[number, bucket], score=scores.get((number, bucket, "detection"))
                )
                for bucket in range(len(examples.buckets))
            ],
            note="; ".join(note for note in notes if note) or None,
        )

    def _explanation_calls(self, number: int) -> Iterator[tuple[int, Call[str]]]:
        examples = self.survey.examples[number]
        yield _WHOLE, self.questioner.explanation(examples, examples.explain)
        for bucket, windows in enumerate(examples.buckets):
            yield bucket, self.questioner.explanation(examples, windows.explain)

    def _score_calls(self, number: int, bucket: int, explanation: str) -> list[tuple[str, ScoreCalls]]:
        examples, config = self.survey.examples[number], self.questioner.config
        if bucket != _WHOLE:
            scored = examples.buckets[bucket].score
            return [("detection", self.questioner.detection(examples, scored, explanation))]
        found = []
        if config.detection:
            found.append(("detection", self.questioner.detection(examples, examples.score, explanation)))
        if config.fuzzing != "none":
            found.append(("fuzzing", self.questioner.fuzzing(examples, examples.score, explanation)))
        return found

    def _make(
        self, calls: Sequence[Call[T]], what: str, purpose: str, show_progress: bool
    ) -> list[T | Unanswered]:
        outcomes = self.caller.make(calls, what, show_progress=show_progress)
        missing = sum(isinstance(outcome, Unanswered) for outcome in outcomes)
        self.unanswered[purpose] = self.unanswered.get(purpose, 0) + missing
        return outcomes


def bucket_scores(latents: Sequence[LatentInterpretation], num_buckets: int) -> np.ndarray:
    """The balanced accuracy of each latent in each bucket, float64 [L, K]; NaN where there is none."""
    found = np.full((len(latents), num_buckets), np.nan)
    for row, latent in zip(found, latents, strict=True):
        for number, bucket in enumerate(latent.buckets):
            if bucket.score is not None and bucket.score.balanced_accuracy is not None:
                row[number] = bucket.score.balanced_accuracy
    return found


def _add(estimate: Estimate, call: Call[Any], kind: str, *, missing: bool) -> Estimate:
    if not missing:
        return replace(estimate, answered=estimate.answered + 1)
    counts = {
        kind: getattr(estimate, kind) + 1,
        "prompt_tokens": estimate.prompt_tokens + call.num_tokens[0],
        "completion_tokens": estimate.completion_tokens + call.num_tokens[1],
    }
    return replace(estimate, **counts)
