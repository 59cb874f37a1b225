"""Shows how many known features each SAE has found, for the terminal and the report."""

from collections.abc import Sequence

from ..common.tables import format_columns
from .results import BucketRecovery, Recovery, Results


def make_recovery_table(found: Sequence[tuple[str, Recovery | None]]) -> list[tuple[str, ...]]:
    """The heads and a line for each SAE that was compared with known features; empty if none was.

    Args:
        found: the name of each SAE, and its figures.
    """
    known = [(name, recovery) for name, recovery in found if recovery is not None]
    if not known:
        return []
    buckets = list(dict.fromkeys(bucket for _, recovery in known for bucket in recovery.buckets))
    heads = (
        "SAE",
        "recovered",
        *(f"of {bucket}" for bucket in buckets),
        "cosine",
        "fidelity",
        "log fidelity",
    )
    rows = [
        (
            name,
            _share(recovery.overall),
            *(_share(recovery.buckets.get(bucket)) for bucket in buckets),
            f"{recovery.overall.mean_similarity:.3f}",
            _correlation(recovery.fidelity),
            _correlation(recovery.fidelity_log),
        )
        for name, recovery in known
    ]
    return [heads, *rows]


def format_recovery(results: Results) -> str:
    """The table for the terminal; empty if the features of the cache are not known."""
    rows = make_recovery_table([(sae.name, sae.recovery) for sae in results.saes])
    if not rows:
        return ""
    numbers = {sae.recovery.overall.num_features for sae in results.saes if sae.recovery is not None}
    return f"known features: {max(numbers):,}\n{format_columns(rows, num_text=1)}"


def _share(bucket: BucketRecovery | None) -> str:
    return "-" if bucket is None else f"{100 * bucket.recovered:.1f} %"


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
