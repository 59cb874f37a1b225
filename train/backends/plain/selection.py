"""The selection rules in torch operations, block by block of the rows.

Legend: B rows, b rows of a block, F latents, P candidates, M sum of the counts.
"""

import torch
from torch import Tensor

from ...pairs import Pairs
from ...selection.errors import check_not_nan
from ..block_pairs import BlockPairs, assemble
from ..sources import Source

HELD = 2  # candidates of Feature Choice held per selected pair, before those out of reach are dropped


def largest_per_row(source: Source, k: int) -> Pairs:
    """See :meth:`..protocol.Backend.largest_per_row`."""
    found = []
    for first_row, pre in source.blocks():
        check_not_nan(first_row, pre)
        least = pre.topk(k, dim=1, sorted=True).values[:, -1:]
        above, equal = pre > least, pre == least
        equal_left = k - above.sum(1, keepdim=True)
        latent = (above | (equal & (equal.cumsum(1) <= equal_left))).nonzero()[:, 1]
        count = torch.full((pre.shape[0],), k, dtype=torch.int64, device=pre.device)
        found.append(BlockPairs(first_row, count, latent, pre.gather(1, latent.view(-1, k)).flatten()))
    return assemble(found, source.num_latents, source.device)


def collect(source: Source, threshold: Tensor | float, *, strict: bool, most: int | None = None) -> Pairs:
    """Collect the pairs that reach (``strict``: exceed) ``threshold``, a number or float32 [F].

    If a block has more than ``most`` such pairs, only its ``most`` largest are kept; ties go to the first.
    """
    found = []
    for first_row, pre in source.blocks():
        check_not_nan(first_row, pre)
        mask = pre > threshold if strict else pre >= threshold
        block = BlockPairs(first_row, mask.sum(1), mask.nonzero()[:, 1], pre[mask])
        too_many = most is not None and block.value.numel() > most
        found.append(block.keep(mask_of_largest(block.value, most or 0)) if too_many else block)
    return assemble(found, source.num_latents, source.device)


def kth_largest(values: Tensor, k: int) -> float:
    """The ``k``-th largest of ``values``, float32 of any shape without NaN."""
    return float(values.detach().flatten().topk(k).values[-1])


def mask_of_largest(values: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest of ``values`` [n]; ties go to the first: bool [n]."""
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    least = kth_largest(values, count)
    above, equal = values > least, values == least
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))


def largest_per_latent(source: Source, counts: Tensor) -> Pairs:
    """See :meth:`..protocol.Backend.largest_per_latent`.

    A latent's threshold rises as rows come in, so few candidates are held.
    """
    counts = counts.to(source.device)
    total = int(counts.sum())
    row = latent = torch.zeros(0, dtype=torch.int64, device=source.device)
    value = torch.zeros(0, device=source.device)
    full = counts == 0  # latents that hold as many rows as they select: only better rows matter to them
    threshold = torch.zeros(len(counts), device=source.device).masked_fill_(full, torch.inf)
    for first_row, pre in source.blocks():
        check_not_nan(first_row, pre)
        new_row, new_latent = ((pre > threshold) | ~full).nonzero(as_tuple=True)
        row, latent = torch.cat([row, new_row + first_row]), torch.cat([latent, new_latent])
        value = torch.cat([value, pre[new_row, new_latent]])
        if len(row) > HELD * total:
            kept = _largest_of_latents(latent, value, counts)
            row, latent, value = row[kept], latent[kept], value[kept]
            least = torch.full_like(threshold, torch.inf).scatter_reduce(0, latent, value, "amin")
            full = torch.bincount(latent, minlength=len(counts)) == counts
            threshold = least.where(full, threshold)
    kept = _largest_of_latents(latent, value, counts)
    order = (row[kept] * len(counts) + latent[kept]).argsort()
    row, latent, value = (one[kept][order] for one in (row, latent, value))
    return Pairs.from_rows(row, latent, value, source.num_rows, len(counts))


def _largest_of_latents(latent: Tensor, value: Tensor, counts: Tensor) -> Tensor:
    """A mask of the ``counts[i]`` largest candidates of latent i; ties go to the first: bool [P]."""
    order = value.argsort(descending=True, stable=True)
    order = order[latent[order].argsort(stable=True)]
    held = torch.bincount(latent, minlength=len(counts))
    rank = torch.arange(len(order), device=order.device) - (held.cumsum(0) - held)[latent[order]]
    kept = torch.empty_like(order, dtype=torch.bool)
    kept[order] = rank < counts[latent[order]]
    return kept
