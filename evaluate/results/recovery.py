"""How many of the features of a synthetic cache an SAE has found."""

from .record import Record


class BucketRecovery(Record):
    """The features of one bucket, or of all. ``recovered`` is the share of them that was found."""

    num_features: int
    recovered: float
    mean_similarity: float


class Recovery(Record):
    """How well an SAE matches the known features, in all and by bucket.

    ``fidelity`` is the correlation of the frequencies of the recovered features with those of their latents,
    in [-1, 1]; ``fidelity_log`` that of the logarithms, where rare features count as much as others. Both are
    None if fewer than 2 features were recovered, or all are equally frequent.
    """

    overall: BucketRecovery
    buckets: dict[str, BucketRecovery]
    fidelity: float | None
    fidelity_log: float | None
