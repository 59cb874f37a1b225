"""What the judge is asked of one latent: an explanation, then marks of windows by that explanation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..results import JudgeScore
from .calls import Call, Unanswered, split
from .chat import Message, make_chat_call, read_explanation, read_marks
from .config import InterpretConfig
from .cost import EXPLANATION_TOKENS, CountTokens, count_messages, score_answer_tokens
from .examples import LatentExamples, Scored
from .prompts import Prompts
from .scores import score_marks
from .window_text import Example, WindowReader
from .windows import Ints


class Shown(NamedTuple):
    """A window as the judge sees it, and what it should say: ``stratum`` is -1 for "no"."""

    example: Example
    stratum: int
    document: int


@dataclass(frozen=True, kw_only=True)
class ScoreCalls:
    """The calls of one score, with the windows shown in each of them."""

    calls: Sequence[Call[list[bool]]]
    shown: Sequence[Sequence[Shown]]

    def score(self, outcomes: Sequence[list[bool] | Unanswered], num_strata: int, seed: int) -> JudgeScore:
        """The score of the judge's marks; windows of a call without an answer are unanswered."""
        marks: list[bool | None] = []
        for outcome, part in zip(outcomes, self.shown, strict=True):
            marks += [None] * len(part) if isinstance(outcome, Unanswered) else outcome
        shown = [one for part in self.shown for one in part]
        stratum, document = (np.asarray([one[i] for one in shown], dtype=np.int64) for i in (1, 2))
        return score_marks(marks, stratum, document, num_strata, seed)


@dataclass(frozen=True, kw_only=True)
class Questioner:
    """Makes the calls of any latent of one cache."""

    reader: WindowReader
    prompts: Prompts
    config: InterpretConfig
    count: CountTokens
    document_of: Ints

    def explanation(self, examples: LatentExamples, windows: Ints) -> Call[str]:
        """Ask what a latent's ``windows``, int64, share."""
        shown = [self._read(examples, int(window), self._marked(examples, int(window))) for window in windows]
        messages = self.prompts.explain(shown)
        return make_chat_call(
            messages,
            read_explanation,
            self.config.endpoint,
            max_tokens=self.config.endpoint.explanation_tokens,
            num_tokens=(count_messages(messages, self.count), EXPLANATION_TOKENS),
            repair=self.prompts.repair_explanation(),
        )

    def detection(self, examples: LatentExamples, scored: Scored, explanation: str) -> ScoreCalls:
        """Ask in which windows a latent is active."""
        shown = [
            Shown(self._read(examples, window, None), stratum, int(self.document_of[window]))
            for window, stratum in _pairs(scored)
        ]
        return self._score(shown, lambda part: self.prompts.detection(explanation, part))

    def fuzzing(self, examples: LatentExamples, scored: Scored, explanation: str) -> ScoreCalls:
        """Ask in which windows the highlighted tokens are those on which a latent is active.

        Wrong highlights are as many as right ones are on average, on random tokens.
        """
        random = np.random.default_rng([self.config.seed, examples.latent, 1])
        right = {window: self._marked(examples, window) for window, stratum in _pairs(scored) if stratum >= 0}
        num_wrong = ceil(np.mean([marked.sum() for marked in right.values()]))
        shown = []
        for window, stratum in _pairs(scored):
            document = int(self.document_of[window])
            if stratum >= 0:
                shown.append(Shown(self._read(examples, window, right[window]), stratum, document))
            if (stratum >= 0) == (self.config.fuzzing == "active"):
                strength = self.reader.activations(examples.column, window)
                visible = np.asarray([piece != "" for piece in self.reader.pieces(window)])
                wrong = np.zeros(len(strength), dtype=bool)
                wrong[random.permutation(np.flatnonzero(visible & (strength == 0)))[:num_wrong]] = True
                if wrong.any():
                    shown.append(Shown(self._read(examples, window, wrong), -1, document))
        order = random.permutation(len(shown))
        return self._score([shown[i] for i in order], lambda part: self.prompts.fuzzing(explanation, part))

    def _score(
        self, shown: Sequence[Shown], prompt: Callable[[Sequence[Example]], list[Message]]
    ) -> ScoreCalls:
        calls, parts = [], list(split(shown, self.config.windows.per_prompt))
        for part in parts:
            examples = [one.example for one in part]
            messages = prompt(examples)
            calls.append(
                make_chat_call(
                    messages,
                    read_marks(len(part)),
                    self.config.endpoint,
                    max_tokens=self.config.endpoint.score_tokens,
                    num_tokens=(count_messages(messages, self.count), score_answer_tokens(len(part))),
                    repair=self.prompts.repair_score(examples),
                )
            )
        return ScoreCalls(calls=calls, shown=parts)

    def _read(self, examples: LatentExamples, window: int, marked: NDArray[np.bool_] | None) -> Example:
        strength = self.reader.activations(examples.column, window)
        marked = np.zeros(len(strength), dtype=bool) if marked is None else marked
        largest = float(np.abs(examples.column.values).max(initial=0))
        return self.reader.read(window, marked, np.nan_to_num(strength), largest)

    def _marked(self, examples: LatentExamples, window: int) -> NDArray[np.bool_]:
        """Which tokens of a window a latent is active on, but for weak ones beside a strong one."""
        strength = np.nan_to_num(self.reader.activations(examples.column, window))
        least = self.config.windows.highlight_share * strength.max(initial=0)
        marked: NDArray[np.bool_] = (strength > 0) & (strength >= least)
        return marked


def _pairs(scored: Scored) -> list[tuple[int, int]]:
    return [(int(w), int(s)) for w, s in zip(scored.window, scored.stratum, strict=True)]
