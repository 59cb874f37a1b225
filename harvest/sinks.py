"""Attention sinks and broken rows: the first block of the stream, norms, and the energy that sinks carry.

Attention sinks are the few tokens whose activations have norms far above all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.errors import BadActivationError, UsageError
from .forward import ActivationReader, cpu_block, whole_blocks
from .model import LanguageModel
from .packing import Cursor
from .plan import HarvestPlan
from .stream import TokenBatch, token_batches

# Attention sinks are judged against the median norm over the first block of the stream, of about this many
# tokens: a fixed block, so that the result does not depend on batch size or interruptions.
CALIBRATION_TOKENS = 1 << 14
# A harvest reports sinks when rows above this many median norms carry at least this share of E|x|^2.
REPORTED_RATIO, REPORTED_SHARE = 10.0, 0.1


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


def centered_norms(x: torch.Tensor) -> torch.Tensor:
    """L2 norm of each row of x [n, D] less its mean, float32 [n]: the norm that caches store."""
    x = x.float()
    norms: torch.Tensor = torch.linalg.vector_norm(x - x.mean(dim=1, keepdim=True), dim=1)
    return norms


def rows_within(
    norms: Mapping[str, torch.Tensor], median_norms: Mapping[str, float], ratio: float
) -> NDArray[np.bool_]:
    """Rows to keep, bool [n]: those within ``ratio`` x the median norm at every hook.

    A row is the same token under every hook, so a sink at one hook is dropped from all. NaN is kept: the
    store refuses it by name.

    Args:
        norms: hook -> norms of its rows, float32 [n].
    """
    keep = torch.stack([~(x > ratio * median_norms[hook]).cpu() for hook, x in norms.items()]).all(dim=0)
    kept: NDArray[np.bool_] = keep.numpy()
    return kept


@dataclass
class SinkEnergy:
    """Sums over the rows of one hook: of |x|^2 (x less its mean), and of the part that sinks carry."""

    rows: int = 0
    total: float = 0.0
    sinks: int = 0
    carried: float = 0.0

    def add(self, norms: torch.Tensor, median: float) -> None:
        """Count rows with these norms, float32 [n]."""
        squares = norms.double().square() if norms.device.type != "mps" else norms.square()
        large = norms > REPORTED_RATIO * median
        self.rows += len(norms)
        self.total += float(squares.sum())
        self.sinks += int(large.sum())
        self.carried += float(squares[large].sum())

    def merge(self, other: "SinkEnergy") -> None:
        """Add the sums of other rows."""
        self.rows += other.rows
        self.total += other.total
        self.sinks += other.sinks
        self.carried += other.carried

    def describe(self, hook: str) -> str | None:
        """One sentence when sinks carry much, with the setting that leaves them out; else None."""
        if not self.sinks or self.carried < REPORTED_SHARE * self.total:
            return None
        return (
            f"warning: hook {hook}: {self.sinks:,} of {self.rows:,} rows are attention sinks (norms above "
            f"{REPORTED_RATIO:g} x the median) and carry {self.carried / self.total:.0%} of E|x|^2, so they "
            f"dominate losses on raw rows; --set selection.sink_ratio={REPORTED_RATIO:g} leaves them out at "
            "harvest, sink_ratio in a training configuration at reading"
        )


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
