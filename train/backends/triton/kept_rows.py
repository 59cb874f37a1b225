"""The rounded rows of an encoder, kept from one step to the next: the optimizer's pass refreshes them.

They belong to the tensor object, and hold as long as torch has not changed it: torch counts its own changes
in place, and of the kernels here only :func:`.adam.adam_step` changes weights.
"""

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .rounding import ScreenRows, round_latents

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # weights -> (torch's count, ScreenRows)


def kept_rows(W: Tensor) -> ScreenRows:
    """:func:`.rounding.round_latents` of ``W``, float32 [F, D], from the last step if there was one."""
    rows = rows_to_refresh(W)
    if rows is None:
        rows = round_latents(W)
        if not W.is_inference():  # torch counts no changes of those
            _kept[W] = W._version, rows
    return rows


def rows_to_refresh(W: Tensor) -> ScreenRows | None:
    """The rows that are kept of ``W``, if they are those of its present values."""
    if W.is_inference():
        return None
    version, rows = _kept.get(W, (None, None))
    return rows if version == W._version else None
