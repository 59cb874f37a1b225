"""The rounded rows of an encoder, kept from one step to the next: the optimizer's pass refreshes them.

Those of a batch are kept for the other selections of its step.

They belong to the tensor object, and hold as long as torch has not changed it: torch counts its own changes
in place, and of the kernels here only :func:`.adam.adam_step` changes weights, and none changes a batch.
"""

from collections.abc import Callable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .rounding import ScreenRows, round_batch, round_latents

Rounding = Callable[[Tensor], ScreenRows]

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # rows -> (torch's count, ScreenRows)


def kept_rows(W: Tensor, round_rows: Rounding = round_latents) -> ScreenRows:
    """:func:`.rounding.round_latents` of ``W``, float32 [F, D], from the last step if there was one."""
    rows = rows_to_refresh(W)
    if rows is None:
        rows = round_rows(W)
        if not W.is_inference():  # torch counts no changes of those
            _kept[W] = W._version, rows
    return rows


def kept_batch(x: Tensor) -> ScreenRows:
    """:func:`.rounding.round_batch` of ``x``, float32 [B, D], from another selection if there was one."""
    return kept_rows(x, round_batch)


def rows_to_refresh(W: Tensor) -> ScreenRows | None:
    """The rows that are kept of ``W``, if they are those of its present values."""
    if W.is_inference():
        return None
    version, rows = _kept.get(W, (None, None))
    return rows if version == W._version else None
