"""The beginning of the stream through the model, before anything is written.

Bad activations are told at once, and the norms that attention sinks are judged by are taken.
"""

import numpy as np
import torch

from ..common.errors import BadActivationError, UsageError
from .forward import RowReader, cpu_block, whole_blocks
from .model import LanguageModel
from .packing import Cursor
from .plan import Plan
from .selection import CALIBRATION_TOKENS, centered_norms
from .stream import Batch, batches


def first_look(plan: Plan, model: LanguageModel) -> dict[str, float]:
    """Median norm of each hook over the first block of the stream.

    The block is :data:`CALIBRATION_TOKENS` long when sinks are to be left out, else one forward of a CPU:
    the same whatever the batch size, so the medians are too.

    Raises:
        UsageError: the text gives no row.
        BadActivationError: NaN or Inf, with its hook, document and position.
    """
    block = cpu_block(plan.rule.context)
    wanted = CALIBRATION_TOKENS // plan.rule.context if plan.config.selection.sink_ratio is not None else 1
    batch = next(batches(plan, Cursor(), 0, whole_blocks(max(1, wanted), block)), None)
    if batch is None:
        raise UsageError(
            "the text gives not a single token: every document is empty or below min_document_tokens"
        )
    rows = RowReader(model, plan.hooks, block).rows(batch.sequences, batch.keep)
    for hook, x in rows.items():
        _check_finite(hook, x, batch)
    return {hook: float(centered_norms(x).median()) for hook, x in rows.items() if len(x)}


def _check_finite(hook: str, x: torch.Tensor, batch: Batch) -> None:
    bad = (~torch.isfinite(x)).any(dim=1).cpu().numpy()
    if not bad.any():
        return
    where = np.flatnonzero(batch.keep)[np.flatnonzero(bad)[0]]
    sequence, position = divmod(int(where), batch.keep.shape[1])
    what = f"NaN or Inf ({int(bad.sum())} of the first {len(bad)} rows)"
    raise BadActivationError(
        f"hook {hook}, document {batch.sequences.documents[sequence, position]}, sequence {sequence}, "
        f"position {position}: {what}; set model.dtype=float32 if the model overflows "
        f"{str(x.dtype).removeprefix('torch.')}, else its weights are damaged"
    )
