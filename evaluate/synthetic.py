"""Writes a cache of rows whose features are known. "Sampled-SAE", section 4 and appendix A.1.

Legend: n rows or directions, d width, k features, b rows of a block.
"""

from collections.abc import Iterator
from hashlib import sha256
from math import inf, sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from ..common.errors import SaecacheError, UsageError
from ..common.frozen import FrozenModel
from ..common.validation import validate
from ..store.config import StorageConfig
from ..store.manifest import Manifest
from ..store.reading.reader import ActivationCache, open_cache
from ..store.writing.output import inspect_output
from ..store.writing.writer import CacheWriter

HOOK = "synthetic"
BLOCK_ROWS = 4096  # rows whose random numbers have one seed
PROBED = 8  # so many numbers of the first direction are stored with the cache
MOST_ITERATIONS = 3000
STEP, MOMENTUM = 0.02, 0.9
MARGIN = 0.95  # cosines above this share of the target are pushed down
# A cache may come from anybody. What its features take to be made again is bounded:
MOST_REMADE = 16_384  # features, whose cosines are 1 GiB
MOST_WORK = 1 << 40  # multiplications, some minutes on a laptop


class FeatureBucket(FrozenModel):
    """Features of one sort: a share ``frequency`` of the rows has each, times N(0, scale²)."""

    name: str
    num_features: PositiveInt
    frequency: Annotated[float, Field(gt=0, le=1)]
    scale: PositiveFloat


# Sizes are those of the paper's Table 2, which says an expected L0 of 61.52. Section 4 gives high frequencies
# as 0.2; with these sizes the L0 would be 105.3, and with 0.1 it would be 58.2 (61.4 if all sizes were 256).
# The table says what was generated, so the frequency is the one that gives its L0.
TABLE_2 = (
    FeatureBucket(name="LF+HA", num_features=265, frequency=0.02, scale=1.0),
    FeatureBucket(name="HF+HA", num_features=237, frequency=0.107134, scale=1.0),
    FeatureBucket(name="LF+LA", num_features=288, frequency=0.02, scale=0.2),
    FeatureBucket(name="HF+LA", num_features=234, frequency=0.107134, scale=0.2),
)


class SyntheticConfig(FrozenModel):
    """Rows X = S Aᵀ + noise. The defaults are the paper's where it does not contradict itself."""

    num_rows: PositiveInt = 10_000
    width: PositiveInt = 256
    buckets: Annotated[tuple[FeatureBucket, ...], Field(min_length=1)] = TABLE_2
    coherence: PositiveFloat = 0.0833  # no two directions align more than this
    coefficients: Literal["normal", "half_normal"] = "normal"  # half_normal: |N(0, scale²)|, never negative
    snr_db: float = 20.0  # of the rows, relative to the noise
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    seed: NonNegativeInt = 0
    storage: StorageConfig = StorageConfig()

    @property
    def num_features(self) -> int:
        return sum(bucket.num_features for bucket in self.buckets)

    @property
    def expected_l0(self) -> float:
        """The mean number of active features of a row."""
        return sum(bucket.num_features * bucket.frequency for bucket in self.buckets)

    def per_feature(self, values: list[float]) -> Tensor:
        """One value for each bucket -> one for each feature, float32 [k]."""
        sizes = torch.tensor([bucket.num_features for bucket in self.buckets])
        return torch.tensor(values).repeat_interleave(sizes)


class GroundTruth:
    """The features of a synthetic cache.

    Attributes:
        config: what made it.
        directions: float32 [k, d], rows of norm 1.
        frequency: float32 [k], share of rows with the feature.
        scale: float32 [k], of its coefficient.
        bucket: int64 [k], into ``config.buckets``.
    """

    def __init__(self, config: SyntheticConfig, most_work: float = inf) -> None:
        self.config = config
        seed = _seed(config.seed, "directions")
        self.directions = low_coherence_directions(
            config.num_features, config.width, config.coherence, seed, most_work
        )
        self.frequency = config.per_feature([bucket.frequency for bucket in config.buckets])
        self.scale = config.per_feature([bucket.scale for bucket in config.buckets])
        self.bucket = config.per_feature([float(i) for i in range(len(config.buckets))]).long()

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Coefficients [b, k] and rows [b, d] in the order of writing: a pure function of the config."""
        power = float(
            (self.frequency * self.scale.square()).sum()
        )  # mean square of a row; its features are nearly orthogonal
        noise = sqrt(power / 10 ** (self.config.snr_db / 10) / self.config.width)
        for first in range(0, self.config.num_rows, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, self.config.num_rows - first)
            generator = torch.Generator().manual_seed(_seed(self.config.seed, f"rows from {first}"))
            active = torch.rand(rows, len(self.scale), generator=generator) < self.frequency
            strength = torch.randn(rows, len(self.scale), generator=generator) * self.scale
            if self.config.coefficients == "half_normal":
                strength.abs_()
            codes = strength * active
            jitter = noise * torch.randn(rows, self.config.width, generator=generator)
            yield codes, codes @ self.directions + jitter


def write_synthetic(config: SyntheticConfig, out: Path | str) -> Manifest:
    """Write the cache, unless it is there already. After an interruption it is written from the start.

    Raises:
        UsageError: the folder holds something else, or the coherence cannot be reached.
    """
    out, identity = Path(out), {"synthetic": config.model_dump(mode="json", exclude={"storage"})}
    if inspect_output(out) == "complete":
        manifest = open_cache(out).manifest
        if manifest.identity.get("synthetic") == identity["synthetic"]:
            return manifest
        raise UsageError(f"{out} holds another cache: choose another folder")
    truth = GroundTruth(config)
    facts = {
        "coherence": mutual_coherence(truth.directions),
        "expected_l0": config.expected_l0,
        "probe": _probe(truth),
    }
    written = active = 0
    with CacheWriter(
        out,
        hooks={HOOK: config.width},
        identity=identity,
        seed=config.seed,
        heldout_fraction=config.heldout_fraction,
        storage=config.storage,
        provenance={"synthetic": facts},
    ) as writer:
        for codes, rows in truth.blocks():
            written += len(rows)
            if written > writer.sequences_done:
                writer.write_rows({HOOK: rows})
            active += int((codes != 0).sum())
        observed = {**facts, "observed_l0": active / written}
        return writer.finalize(provenance={"synthetic": observed}, commit_first=False)


def has_known_features(cache: ActivationCache) -> bool:
    """Whether :func:`write_synthetic` has written the cache."""
    return isinstance(cache.manifest.identity.get("synthetic"), dict)


def remake_ground_truth(cache: ActivationCache) -> GroundTruth:
    """Make the features of a synthetic cache again from its settings.

    Raises:
        UsageError: the cache is not a synthetic one, its settings contradict it, or its features take more
            than :data:`MOST_REMADE` and :data:`MOST_WORK` allow.
        SaecacheError: this version of torch draws other random numbers than the one that wrote the cache.
    """
    if not has_known_features(cache):
        raise UsageError(f"{cache.path} has no known features: 'saecache synthetic' makes caches that do")
    origin, width = f"{cache.path}: identity.synthetic", cache.d_model(HOOK) if HOOK in cache.hooks else None
    config = validate(SyntheticConfig, cache.manifest.identity["synthetic"], origin)
    if config.width != width or config.num_features > MOST_REMADE:
        raise UsageError(
            f"{origin} says {config.num_features:,} features of width {config.width:,}; expected at most "
            f"{MOST_REMADE:,} of width {width}"
        )
    truth, facts = GroundTruth(config, MOST_WORK), cache.provenance.get("synthetic")
    if not _is_probe(facts.get("probe") if isinstance(facts, dict) else None, truth):
        raise SaecacheError(
            f"{cache.path}: the features cannot be made again: torch draws other random numbers here than "
            "where the cache was written; write it again with 'saecache synthetic'"
        )
    return truth


def _seed(seed: int, purpose: str) -> int:
    """A seed that nothing else uses: an SAE that starts from the same small seed must not be the answer."""
    return int.from_bytes(sha256(f"synthetic {seed} {purpose}".encode()).digest()[:8], "big") >> 1


def _probe(truth: GroundTruth) -> list[float]:
    numbers: list[float] = truth.directions[0, :PROBED].tolist()
    return numbers


def _is_probe(values: Any, truth: GroundTruth) -> bool:
    """Whether a cache's ``values`` are those of these features, up to the rounding of another machine."""
    expected = _probe(truth)
    if not isinstance(values, list) or len(values) != len(expected):
        return False
    return all(
        isinstance(value, float) and abs(value - own) < 1e-3
        for value, own in zip(values, expected, strict=True)
    )


def mutual_coherence(directions: Tensor) -> float:
    """The largest |cosine| of two of ``directions`` [n, d], rows of norm 1."""
    return float(_cosines(directions).abs().max())


def least_coherence(num: int, width: int) -> float:
    """The least mutual coherence that ``num`` directions in ``width`` dimensions can have (Welch 1974)."""
    return sqrt((num - width) / (width * (num - 1))) if num > width else 0.0


@torch.no_grad()
def low_coherence_directions(
    num: int, width: int, target: float, seed: int, most_work: float = inf
) -> Tensor:
    """Make ``num`` unit vectors with mutual coherence of at most ``target``: float32 [n, d].

    They start at random. Gradient steps then lower the squares of what the |cosines| exceed the target by.

    Args:
        most_work: multiplications after which it gives up.

    Raises:
        UsageError: the target is below Welch's bound, or was not reached.
    """
    bound = least_coherence(num, width)
    if target <= bound:
        raise UsageError(
            f"coherence={target:g}: {num} directions in {width} dimensions have at least {bound:.4f} "
            "(Welch's bound, which few sets reach): raise coherence, or lower the number of features"
        )
    generator = torch.Generator().manual_seed(seed)
    found = _unit(torch.randn(num, width, generator=generator))
    velocity = torch.zeros_like(found)
    iterations = int(min(MOST_ITERATIONS, max(1.0, most_work / (2 * num * num * width))))
    for _ in range(iterations):
        cosines = _cosines(found)
        if float(cosines.abs().max()) <= target:
            return found
        excess = cosines - cosines.clamp(-MARGIN * target, MARGIN * target)
        velocity = MOMENTUM * velocity - STEP * (excess @ found)
        found = _unit(found + velocity)
    raise UsageError(
        f"coherence={target:g}: {num} directions in {width} dimensions came down to "
        f"{mutual_coherence(found):.4f} only (Welch's bound is {bound:.4f}): raise coherence"
    )


def _cosines(directions: Tensor) -> Tensor:
    cosines = directions @ directions.T
    cosines.fill_diagonal_(0)
    return cosines


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return unit
