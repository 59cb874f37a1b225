"""All that an evaluation finds: of each SAE, and of all together."""

from typing import Any

from pydantic import Field

from .judge import Interpretation, Uniqueness
from .latents import LatentResult
from .metrics import (
    CodeMetrics,
    DecoderCollapse,
    DensityCurve,
    Histogram,
    LanguageModelMetrics,
    Overlap,
    ProgressiveStep,
    ReconstructionMetrics,
    ZipfLaw,
)
from .record import Record
from .recovery import Recovery
from .texts import AbsorptionResult, ProbingResult

FORMAT_VERSION = 1


class HookResult(Record):
    """An SAE at one of its hooks: fidelity there, and the share of its latents' decoder norms."""

    hook: str
    d_model: int
    normalized: ReconstructionMetrics
    raw: ReconstructionMetrics
    mean_decoder_share: float
    decoder_shares: Histogram
    language_model: LanguageModelMetrics | None = None


class SaeResult(Record):
    """One SAE. ``sae_dir`` is relative to the folder of the results file where that is possible.

    ``rule`` says how its latents were selected: ``threshold`` (as at inference) or ``batch`` (as in
    training). ``rows`` are those that it was measured on; None in results of version 0.2.0. ``latents_dir``
    is the folder of all latents, relative to that of the results file; None if there is none. ``target`` is
    the hook that a transcoder predicts from ``hook``; ``hooks`` are those of a crosscoder, or of a
    cross-layer transcoder. ``weights_sha256`` is of all tensors of the SAE; None in results of version 0.2.0.
    ``recovery`` is of autoencoders on a synthetic cache.
    """

    name: str
    sae_dir: str
    kind: str
    hook: str
    d_model: int
    num_latents: int
    k: float | None
    normalization: str
    config: dict[str, Any]
    normalized: ReconstructionMetrics
    raw: ReconstructionMetrics
    codes: CodeMetrics
    language_model: LanguageModelMetrics | None
    density: DensityCurve
    features_per_token: Histogram
    latents: list[LatentResult]
    rule: str = "threshold"
    rows: int | None = None
    zipf: ZipfLaw | None = None
    progressive: list[ProgressiveStep] = Field(default_factory=list)
    collapse: DecoderCollapse | None = None
    probing: list[ProbingResult] = Field(default_factory=list)
    absorption: AbsorptionResult | None = None
    latents_dir: str | None = None
    interpretation: Interpretation | None = None
    target: str | None = None
    hooks: list[HookResult] = Field(default_factory=list)
    weights_sha256: str | None = None
    recovery: Recovery | None = None

    @property
    def place(self) -> str:
        """The hook, or the hooks, as a reader is shown them."""
        return self.hook if self.target is None else f"{self.hook} → {self.target}"

    def is_of_weights(self, sha256: str | None) -> bool | None:
        """Whether it was measured on the weights with this hash; None where one of both hashes is unknown."""
        if sha256 is None or self.weights_sha256 is None:
            return None
        return self.weights_sha256 == sha256

    def probe_accuracy(self, k: str | None) -> float | None:
        """Mean over the data sets of the accuracy of probes that see ``k`` latents, or all (None)."""
        found = [probe.dense if k is None else probe.sparse.get(k) for probe in self.probing]
        known = [accuracy.accuracy for accuracy in found if accuracy is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None


class CacheSummary(Record):
    """The cache that was measured on; ``split`` (normally ``heldout``) and ``rows`` say which of its rows."""

    path: str
    fingerprint: str
    identity: dict[str, Any]
    counts: dict[str, int]
    hooks: dict[str, int]
    beside: dict[str, str] = Field(
        default_factory=dict
    )  # fingerprints of the caches that were read beside it, by name
    context: int
    normalization: str
    train_rows: int
    heldout_rows: int
    split: str
    rows: int


class Results(Record):
    """Everything in ``results.json``."""

    format_version: int = FORMAT_VERSION
    created: str
    software: dict[str, str]
    settings: dict[str, Any]
    cache: CacheSummary
    definitions: dict[str, str]
    warnings: list[str]
    saes: list[SaeResult]
    overlap: list[Overlap] = Field(default_factory=list)
    uniqueness: list[Uniqueness] = Field(default_factory=list)
