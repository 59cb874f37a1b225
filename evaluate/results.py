"""The results of an evaluation, as in ``results.json``. Reading them needs neither torch nor the cache."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ..common.errors import UsageError
from ..store.durable import write_bytes
from ..store.untrusted_files import read_object
from .judge_results import Interpretation, Uniqueness
from .record import Record

FORMAT_VERSION = 1
RESULTS_NAME = "results.json"
MAX_RESULTS_BYTES = 256 << 20
NO_RESULTS = "it is not a results file of saecache evaluate: measure again"


class Histogram(Record):
    """``counts[i]`` items lie in ``[edges[i], edges[i + 1])``; the last bin holds its right edge too."""

    edges: list[float]
    counts: list[int]


Intervals = dict[str, tuple[float, float]]
"""95 % confidence intervals by the name of the figure; a figure that has none is absent."""


class ReconstructionMetrics(Record):
    """Fidelity in one space (normalized rows as trained, or raw rows). FVU is None for constant rows."""

    fvu: float | None
    explained_variance: float | None
    mse: float
    cosine: float
    intervals: Intervals = Field(default_factory=dict)


class CodeMetrics(Record):
    """Sparsity and use of the latents. ``dying`` ones are alive; None where no law was fitted."""

    l0: float
    l0_quantiles: dict[str, int]
    l0_min: int
    l0_max: int
    l1: float
    alive: int
    dead: int
    alive_share: float
    dense_share: float
    dying: int | None = None
    intervals: Intervals = Field(default_factory=dict)


class ZipfFit(Record):
    """density(rank i) = scale / (i + beta)^alpha; ``r2`` in the space that was fitted."""

    alpha: float
    beta: float
    scale: float
    r2: float


class ZipfLaw(Record):
    """Zipf's law fitted to the densities of the alive latents: to their logarithms, and to themselves."""

    log: ZipfFit
    linear: ZipfFit
    num_alive: int


class ProgressiveStep(Record):
    """FVU of normalized rows when at most ``kept`` codes of each row are kept, ``l0`` on average."""

    kept: int
    l0: float
    fvu: float | None


class DecoderCollapse(Record):
    """How much the decoder's directions align. ``num_sampled`` latents were compared with all others."""

    nfm_norm: float
    mean_square_cosine: float
    mean_square_cosine_of_random: float
    effective_dimensions: float
    nearest_cosine: float
    nearest_cosine_quantiles: dict[str, float]
    same_direction_share: float
    num_sampled: int


class Matching(Record):
    """One-to-one matches of cosine 0.7 or more; ``share`` is of the smaller SAE."""

    matched: int
    share: float
    mean_cosine: float | None


class Overlap(Record):
    """How much SAE ``a`` finds of SAE ``b``'s directions, and the reverse; both at ``hook``.

    ``mmcs_a_in_b`` is over ``num_a`` latents of ``a``, each compared with all of ``b``.
    """

    a: str
    b: str
    hook: str
    mmcs_a_in_b: float
    mmcs_b_in_a: float
    num_a: int
    num_b: int
    matching: Matching | None
    intervals: Intervals = Field(default_factory=dict)


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


class LanguageModelMetrics(Record):
    """What the reconstruction costs the language model. Losses and KL in nats per scored token.

    A score is None if its denominator, the ablated loss less the clean one, is not positive. Figures that
    have a default are absent from results of version 0.2.0.
    """

    num_tokens: int
    num_sequences: int
    ce_clean: float
    ce_sae: float
    ce_zero: float
    ce_mean: float
    ce_recovered: float | None
    ce_recovered_standard_error: float | None
    ce_recovered_mean_ablation: float | None
    kl_sae: float
    kl_zero: float
    kl_score: float | None
    activation_mismatch: float
    kl_mean: float | None = None
    kl_score_mean_ablation: float | None = None
    top1_sae: float | None = None
    top1_zero: float | None = None
    top1_mean: float | None = None
    intervals: Intervals = Field(default_factory=dict)


class DensityCurve(Record):
    """Density of the alive latents by rank (1 = densest), and its histogram over log10."""

    rank: list[int]
    density: list[float]
    log10_histogram: Histogram


class Context(Record):
    """One place in the text where a latent is active, with the tokens around it.

    ``activations[i]`` belongs to ``tokens[i]``; it is None if the measured rows do not hold that token.
    ``peak`` is the index of the token for which the context was chosen.
    """

    row: int
    sequence: int
    position: int
    document: int
    peak: int
    token_ids: list[int]
    tokens: list[str]
    activations: list[float | None]


class LatentResult(Record):
    """A sampled latent. ``rank`` 1 is the densest; ``mean_activation`` is over the rows on which it fires."""

    index: int
    rank: int
    density: float
    max_activation: float
    mean_activation: float
    activation_histogram: Histogram
    contexts: list[Context]


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
    is the folder of all latents, relative to that of the results file; None if there is none. The report
    draws ``calibration`` where a judge has filled it in. ``target`` is the hook that a transcoder predicts
    from ``hook``; ``hooks`` are those of a crosscoder, or of a cross-layer transcoder. ``weights_sha256``
    is of all tensors of the SAE; None in results of version 0.2.0.
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

    @property
    def place(self) -> str:
        """The hook, or the hooks, as a reader is shown them."""
        return self.hook if self.target is None else f"{self.hook} → {self.target}"


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


def write_results(results: Results, path: Path) -> None:
    """Write ``path`` as a whole or not at all."""
    write_bytes(path, results.model_dump_json().encode("utf-8"))


def read_results(path: Path) -> Results:
    """The results in ``path``.

    Raises:
        UsageError: no such file, or not results of a version this one reads.
    """
    try:
        values = read_object(path, NO_RESULTS, MAX_RESULTS_BYTES)
    except FileNotFoundError:
        raise UsageError(
            f"no results at {path}: measure first, with 'saecache evaluate {path.parent} --cache CACHE'"
        ) from None
    try:
        results = Results.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise UsageError(
            f"{path} is not a results file of saecache evaluate ({first['msg']} at {where}); measure again"
        ) from None
    if results.format_version != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {results.format_version}, expected {FORMAT_VERSION}; measure again"
        )
    return results


def read_fitted_zipf(place: str) -> ZipfFit:
    """The law that an evaluation fitted to an SAE's densities (not to their logarithms).

    That fit describes the latents that make most of the matches, as the paper's alpha 1 and beta 6.8 do. On
    few rows the fit to logarithms is ruled by the tail, which falls faster than any power.

    Args:
        place: a results file; with ``:NAME`` after it, which SAE in it, where it holds several.

    Raises:
        UsageError: no such file or SAE, or no law was fitted to it.
    """
    path, colon, name = place.rpartition(":")
    if not colon or Path(place).is_file():
        path, name = place, ""
    results = read_results(Path(path))
    found = [sae for sae in results.saes if sae.name == name or not name]
    if len(found) != 1:
        names = ", ".join(sae.name for sae in results.saes)
        wanted = f"no SAE {name!r}" if name else f"{len(found)} SAEs"
        raise UsageError(f"{path} holds {wanted}; name one of them, as {path}:NAME: {names}")
    if found[0].zipf is None:
        raise UsageError(
            f"{path}: no Zipf law was fitted to {found[0].name}, because fewer than 10 of its latents fired"
        )
    return found[0].zipf.linear
