"""Feature Choice in plain torch operations, for every device; see :mod:`.per_latent`.

Legend: B rows, F latents, P candidates, M sum of the counts.
"""

import torch
from torch import Tensor

from ..kernels.encode import Blocks
from ..pairs import Pairs
from .errors import check_not_nan

HELD = 2  # candidates held for each one wanted, before the beaten ones are dropped


def select_per_latent_torch(blocks: Blocks, num_rows: int, counts: Tensor) -> Pairs:
    """As :func:`.per_latent.select_per_latent`."""
    total = int(counts.sum())
    row = latent = value = threshold = None
    for first_row, pre in blocks():
        check_not_nan(first_row, pre)
        if row is None or latent is None or value is None or threshold is None:
            counts = counts.to(pre.device)
            row = latent = torch.zeros(0, dtype=torch.int64, device=pre.device)
            value, threshold = pre.new_zeros(0), pre.new_zeros(len(counts))
            full = counts == 0  # latents that hold as many rows as they want: only better rows matter to them
            threshold[full] = torch.inf
        new_row, new_latent = ((pre > threshold) | ~full).nonzero(as_tuple=True)
        row, latent = torch.cat([row, new_row + first_row]), torch.cat([latent, new_latent])
        value = torch.cat([value, pre[new_row, new_latent]])
        if len(row) > HELD * total:
            kept = _largest(latent, value, counts)
            row, latent, value = row[kept], latent[kept], value[kept]
            least = torch.full_like(threshold, torch.inf).scatter_reduce(0, latent, value, "amin")
            full = torch.bincount(latent, minlength=len(counts)) == counts
            threshold = least.where(full, threshold)
    assert row is not None and latent is not None and value is not None, "blocks hold all rows"
    kept = _largest(latent, value, counts)
    order = (row[kept] * len(counts) + latent[kept]).argsort()
    return Pairs.from_rows(row[kept][order], latent[kept][order], value[kept][order], num_rows, len(counts))


def _largest(latent: Tensor, value: Tensor, counts: Tensor) -> Tensor:
    """The ``counts[i]`` largest of the candidates of latent i, the first of equal ones: bool [P]."""
    order = value.argsort(descending=True, stable=True)
    order = order[latent[order].argsort(stable=True)]
    held = torch.bincount(latent, minlength=len(counts))
    rank = torch.arange(len(order), device=order.device) - (held.cumsum(0) - held)[latent[order]]
    kept = torch.empty_like(order, dtype=torch.bool)
    kept[order] = rank < counts[latent[order]]
    return kept
