"""The first block of the stream, read before anything is written: median norms of hooks, and broken rows."""

import numpy as np
import torch

from ...common.errors import BadActivationError, UsageError
from ..model.forward import ActivationReader, cpu_block, whole_blocks
from ..model.language_model import LanguageModel
from ..plan import HarvestPlan
from ..text.packing import Cursor
from .sinks import centered_norms
from .stream import TokenBatch, token_batches

# Attention sinks are judged against the median norm over the first block of the stream, of about this many
# tokens: a fixed block, so that the result does not depend on batch size or interruptions.
CALIBRATION_TOKENS = 1 << 14


def measure_first_block(plan: HarvestPlan, model: LanguageModel, cut_padding: bool) -> dict[str, float]:
    """Median norm of each hook over the first block of the stream, before anything is written.

    The block is :data:`CALIBRATION_TOKENS` long when sinks are to be left out, else one forward of a CPU:
    the same whatever the batch size, so the medians are too.

    Raises:
        UsageError: the text gives no row.
        BadActivationError: NaN or Inf, with its hook, document and position.
    """
    block = cpu_block(plan.rule.context)
    wanted = CALIBRATION_TOKENS // plan.rule.context if plan.config.selection.sink_ratio is not None else 1
    batch = next(token_batches(plan, Cursor(), 0, whole_blocks(max(1, wanted), block)), None)
    if batch is None:
        raise UsageError(
            "the text gives not a single token: every document is empty or below min_document_tokens"
        )
    reader = ActivationReader(model, plan.hooks, block, cut_padding=cut_padding)
    rows = reader.rows(batch.sequences, batch.keep)
    for hook, x in rows.items():
        _check_finite(hook, x, batch)
    if plan.config.selection.sink_ratio is not None and not batch.keep.any():
        raise UsageError(
            f"the first {batch.sequences.ids.size} positions give no row, so attention sinks cannot be told "
            "from others: leave out selection.sink_ratio, or choose more of the text (text.chat.roles)"
        )
    return {hook: float(centered_norms(x).median()) for hook, x in rows.items() if len(x)}


def _check_finite(hook: str, x: torch.Tensor, batch: TokenBatch) -> None:
    bad = (~torch.isfinite(x)).any(dim=1).cpu().numpy()
    if not bad.any():
        return
    where = np.flatnonzero(batch.keep)[np.flatnonzero(bad)[0]]
    sequence, position = divmod(int(where), batch.keep.shape[1])
    dtype = str(x.dtype).removeprefix("torch.")
    advice = (
        "the model's weights are damaged: copy or download them again"
        if x.dtype == torch.float32
        else f"set model.dtype=float32 if the model overflows {dtype}, else its weights are damaged"
    )
    raise BadActivationError(
        f"hook {hook}, document {batch.sequences.documents[sequence, position]}, sequence {sequence}, "
        f"position {position}: NaN or Inf ({int(bad.sum())} of the first {len(bad)} rows); {advice}"
    )
