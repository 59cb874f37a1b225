"""What is measured on texts that are not the cache's: probing, and absorption of first letters."""

from pydantic import Field

from .metrics import Intervals
from .record import Record


class ProbingAccuracy(Record):
    """Test accuracy averaged over the classes, of each class, and a 95 % interval over the test texts."""

    accuracy: float
    by_class: list[float]
    interval: tuple[float, float] | None = None


class ProbingResult(Record):
    """Probing of one SAE on one set of labelled texts. ``sparse`` and ``model_sparse`` are by k, the number
    of latents of the SAE and of activations of the model; ``dense`` and ``model_dense`` see all of them.
    """

    data: str
    classes: list[str]
    train_texts: int
    test_texts: int
    sparse: dict[str, ProbingAccuracy]
    dense: ProbingAccuracy
    model_sparse: dict[str, ProbingAccuracy]
    model_dense: ProbingAccuracy


class LetterAbsorption(Record):
    """Absorption of one first letter. ``probe_f1`` is of the probe of the model's activations."""

    letter: str
    probe_f1: float
    true_positives: int
    main_latents: list[int]
    sparse_f1: float
    absorption_fraction: float
    full_absorption: float


class AbsorptionResult(Record):
    """Feature absorption of first letters; ``refused`` says why there are no figures."""

    num_words: int
    refused: str | None = None
    absorption_fraction: float | None = None
    full_absorption: float | None = None
    main_latents: float | None = None
    letters: list[LetterAbsorption] = Field(default_factory=list)
    intervals: Intervals = Field(default_factory=dict)
