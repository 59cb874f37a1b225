"""How large the cache of a harvest will be, before it begins."""

from collections.abc import Mapping

from ..store import PlannedSize, plan_size
from .packing import Cursor
from .plan import Plan
from .stream import batches

_SAMPLE_SEQUENCES = 256


def planned_size(plan: Plan, widths: Mapping[str, int]) -> PlannedSize:
    """Bytes for every token that is asked for; what selection leaves out makes it less.

    With one document per sequence the number of sequences, and so of stored token ids, is estimated from the
    first documents.
    """
    context, storage = plan.rule.context, plan.config.storage
    rows = plan_size(widths, context, plan.full_sequences, storage, tokens=False)
    sequences = planned_sequences(plan)
    with_tokens = plan_size(widths, context, sequences, storage)
    without = plan_size(widths, context, sequences, storage, tokens=False)
    return PlannedSize(
        final_bytes=rows.final_bytes + with_tokens.final_bytes - without.final_bytes,
        peak_bytes=rows.peak_bytes + with_tokens.peak_bytes - without.peak_bytes,
    )


def planned_sequences(plan: Plan) -> int:
    """Sequences of the whole harvest."""
    if plan.rule.packing == "packed":
        return plan.full_sequences
    sample = next(batches(plan, Cursor(), 0, _SAMPLE_SEQUENCES), None)
    if sample is None:
        return 0
    mean_tokens = float(sample.sequences.token_counts().mean())
    return max(1, round(plan.config.num_tokens / mean_tokens))
