"""Dead latents, counted in rows (tokens), so that the batch size does not change what dead means."""

import torch
from torch import Tensor


def count_rows(rows_since_active: Tensor, firing: Tensor, num_rows: int) -> None:
    """After a batch of ``num_rows``, in place: int64 [F] grows by them; is 0 where ``firing`` [F] is not."""
    rows_since_active += num_rows
    rows_since_active.masked_fill_(firing > 0, 0)


def dead_latents(rows_since_active: Tensor, dead_after_rows: int) -> Tensor:
    """bool [F]: not active on any of the last ``dead_after_rows`` rows or more."""
    return torch.ge(rows_since_active, dead_after_rows)
