"""The selection rules in torch operations, block by block of the rows.

Each rule takes candidates by the bounds of the screened scores and then decides by exact pre-activations, so
neither the screening product nor the block size changes a selection.

Legend: B rows, b rows of a block, F latents, P candidates, M sum of the counts.
"""

import torch
from torch import Tensor

from ...pairs import Pairs
from ..block_pairs import BlockPairs, assemble
from ..sources import Source
from .screening import screened_blocks

BISECTIONS = 16
HELD = 2  # candidates of Feature Choice held per selected pair, before those out of reach are dropped


def largest_per_row(source: Source, k: int) -> Pairs:
    """See :meth:`..protocol.Backend.largest_per_row`."""
    found = []
    for block in screened_blocks(source):
        least = block.lower().topk(k, dim=1).values[:, -1:]  # k pre-activations of the row reach it
        found.append(_largest_of_rows(block.candidates(block.upper() >= least), k))
    return assemble(found, source.num_latents, source.device)


def _largest_of_rows(candidates: BlockPairs, k: int) -> BlockPairs:
    """The ``k`` largest candidates of each row, which has ``k`` or more; ties go to the lowest latent."""
    count = candidates.count
    start = count.cumsum(0) - count
    row = torch.repeat_interleave(count, output_size=len(candidates.latent))
    values = candidates.value.new_full((len(count), int(count.max())), -torch.inf)
    values[row, torch.arange(len(row), device=row.device) - start[row]] = candidates.value + 0.0  # no -0.0
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    place = (start[:, None] + order).flatten()
    return BlockPairs(
        candidates.first_row, torch.full_like(count, k), candidates.latent[place], candidates.value[place]
    )


def collect(source: Source, threshold: Tensor | float, *, strict: bool, most: int | None = None) -> Pairs:
    """Collect the pairs that reach (``strict``: exceed) ``threshold``, a number or float32 [F].

    If a block has more than ``most`` such pairs, only its ``most`` largest are kept; ties go to the first.
    """
    compare = torch.gt if strict else torch.ge
    found = []
    for block in screened_blocks(source):
        pairs = block.candidates(compare(block.upper(), threshold))
        if block.error is not None:
            bar = threshold[pairs.latent] if isinstance(threshold, Tensor) else threshold
            pairs = pairs.keep(compare(pairs.value, bar))
        too_many = most is not None and pairs.value.numel() > most
        found.append(pairs.keep(mask_of_largest(pairs.value, most or 0)) if too_many else pairs)
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
    for block in screened_blocks(source):
        waiting = not bool(full.all())
        mask = block.upper() > threshold
        if waiting:
            mask = torch.where(full, mask, block.upper() >= _reached_by(block.lower(), counts))
        new = block.candidates(mask)
        new_row = torch.repeat_interleave(new.count, output_size=len(new.latent)) + block.first_row
        row, latent, value = (
            torch.cat(two) for two in ((row, new_row), (latent, new.latent), (value, new.value))
        )
        if waiting or len(row) > HELD * total:
            order, rank = _ranked_in_latents(latent, value, len(counts))
            threshold = threshold.to(value.dtype)
            last = order[rank == counts[latent[order]] - 1]  # the least of those that a full latent selects
            threshold[latent[last]] = value[last]
            full[latent[last]] = True
            kept = order[rank < counts[latent[order]]].sort().values
            row, latent, value = row[kept], latent[kept], value[kept]
    order, rank = _ranked_in_latents(latent, value, len(counts))
    kept = order[rank < counts[latent[order]]]
    kept = kept[(row[kept] * len(counts) + latent[kept]).argsort()]
    return Pairs.from_rows(row[kept], latent[kept], value[kept], source.num_rows, len(counts))


def _reached_by(values: Tensor, counts: Tensor) -> Tensor:
    """A number that ``counts[i]`` or more of column i of ``values`` [b, F] reach, nearly the largest: [F].

    Bisection, because torch has no order statistic of another rank for each column.
    """
    low, high = torch.aminmax(values, dim=0)
    low = low.masked_fill(counts > len(values), -torch.inf)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = (values >= middle).sum(0) >= counts
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low


def _ranked_in_latents(latent: Tensor, value: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
    """Order candidates by latents, then by descending values; ties keep their order.

    Returns:
        The candidates in this order, int64 [P], and the 0-based rank of each within its latent, int64 [P].
    """
    order = (value + 0.0).argsort(descending=True, stable=True)  # no -0.0, which a device may sort below 0.0
    order = order[latent[order].argsort(stable=True)]
    held = torch.bincount(latent, minlength=num_latents)
    rank = torch.arange(len(order), device=order.device) - (held.cumsum(0) - held)[latent[order]]
    return order, rank
