"""What a judge makes of latents: the parts of ``results.json`` that ``saecache interpret`` adds."""

from typing import Any

from pydantic import Field

from .record import Record


class JudgeScore(Record):
    """How well a judge tells windows apart by an explanation: ``balanced_accuracy`` 0.5 is chance.

    ``strata`` is the balanced accuracy by decile of activation, the weakest first; of a bucket's score it is
    empty. Windows without a usable answer are ``unanswered`` and count in nothing else. A share is None where
    no window was answered.
    """

    balanced_accuracy: float | None
    true_positive_rate: float | None
    true_negative_rate: float | None
    strata: list[float | None]
    answered: int
    unanswered: int
    interval: tuple[float, float] | None = None


class BucketInterpretation(Record):
    """A latent's windows of one bucket of activation: their own explanation, and its score."""

    explanation: str | None
    score: JudgeScore | None


class LatentInterpretation(Record):
    """What a judge makes of one latent. ``explanation`` is None where it gave no usable answer.

    ``buckets`` go from the weakest activations to the strongest; they are empty without calibration, and
    where the latent has too few windows for it, which ``note`` then says.
    """

    index: int
    density: float
    num_windows: int
    explanation: str | None
    detection: JudgeScore | None = None
    fuzzing: JudgeScore | None = None
    buckets: list[BucketInterpretation] = Field(default_factory=list)
    note: str | None = None


class MeanScore(Record):
    """The mean balanced accuracy of ``num_latents`` latents, and by decile of activation."""

    mean: float
    strata: list[float | None]
    num_latents: int
    unanswered: int
    interval: tuple[float, float] | None = None


class CalibrationBucket(Record):
    """The mean score of the activations between two percentiles, with its interval over the latents."""

    low: float
    high: float
    mean: float | None
    num_latents: int
    interval: tuple[float, float] | None = None


class Calibration(Record):
    """Scores by percentile of activation. ``correlation`` is over the points latent × bucket."""

    buckets: list[CalibrationBucket]
    correlation: float | None
    num_latents: int
    interval: tuple[float, float] | None = None


class SkippedLatent(Record):
    """A latent that was to be judged and was not, and why."""

    index: int
    reason: str


class Interpretation(Record):
    """The answers of ``judge``, a model, on latents of one SAE (``saecache interpret``).

    ``alive`` latents are active in some window; ``too_few_windows`` of them in too few to be judged.
    ``unanswered`` counts calls without a usable answer, by what was asked.
    """

    judge: str
    prompts_sha256: str
    settings: dict[str, Any]
    rows: int
    windows: int
    alive: int
    too_few_windows: int
    skipped: list[SkippedLatent]
    unanswered: dict[str, int]
    detection: MeanScore | None
    fuzzing: MeanScore | None
    calibration: Calibration | None
    latents: list[LatentInterpretation]


class BestMatch(Record):
    """The judged latent ``match`` of the other SAE that is most like ``latent``.

    ``similarity`` is the mean of ``decoder``, the cosine of the decoder directions, and ``text``, that of the
    explanations' embeddings. ``nearest_cosine`` is the largest cosine with any latent of the other SAE,
    judged or not.
    """

    latent: int
    match: int
    similarity: float
    decoder: float
    text: float
    nearest_cosine: float


class Uniqueness(Record):
    """How far SAE ``b`` has SAE ``a``'s judged latents; ``matches`` begin with the most unique one."""

    a: str
    b: str
    hook: str
    encoder: str
    num_a: int
    num_b: int
    mean_similarity: float
    matches: list[BestMatch]
    interval: tuple[float, float] | None = None
