"""What is measured of one SAE, or of two: fidelity, sparsity, densities, directions, cost to the model."""

from pydantic import Field

from .record import Record


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


class DensityCurve(Record):
    """Density of the alive latents by rank (1 = densest), and its histogram over log10."""

    rank: list[int]
    density: list[float]
    log10_histogram: Histogram


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
