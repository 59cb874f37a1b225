"""Feature Choice: select for each latent the rows with the largest pre-activations.

One pass over the rows in order. A latent's candidates are the rows whose pre-activation could be among its
largest so far. The threshold that decides this rises as rows come in, so few candidates are held: memory is
O(sum of counts + block), whatever the number of rows.

Legend: B rows, F latents, P candidates.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....pairs import Pairs
from ...sources import Encoder, Source
from ...threads import even_part, num_threads, run_parts
from ..bits import key, kth_key
from ..compile import compiled
from ..pair_order import by_latent
from .latent_candidates import LatentCandidates
from .scored_blocks import given_block, opened


def largest_per_latent(source: Source, counts: Tensor) -> Pairs:
    """See :meth:`...protocol.Backend.largest_per_latent`.

    Raises:
        NonFiniteError: a pre-activation is NaN.
    """
    if isinstance(source, Encoder):
        return _from_encoder(source, counts)
    candidates = LatentCandidates(counts.numpy())
    for first_row, pre in source.blocks():
        candidates.add(given_block(first_row, pre.contiguous()))
    return _largest(_by_rows(candidates, source.num_rows), counts)


def _from_encoder(encoder: Encoder, counts: Tensor) -> Pairs:
    candidates = LatentCandidates(counts.numpy())
    num_rows = encoder.num_rows
    with opened(encoder) as screen:
        rows = encoder.rows_per_block * num_threads()
        for start in range(0, num_rows, rows):
            with screen.scored(start, min(start + rows, num_rows)) as block:
                candidates.add(block)
        pairs = _by_rows(candidates, num_rows)
        row_ptr, latent, value = (t.numpy() for t in (pairs.row_ptr, pairs.latent, pairs.value))

        def recompute(start: int, stop: int) -> None:
            screen.exact(start, row_ptr[start:stop], row_ptr[start + 1 : stop + 1], latent, value)

        run_parts(recompute, num_rows, even_part(num_rows))
    return _largest(pairs, counts)


def _by_rows(candidates: LatentCandidates, num_rows: int) -> Pairs:
    row, latent, score = (torch.from_numpy(array) for array in candidates.collect())
    # by_latent sorts by rows here, as row and latent are swapped. It is stable: latents stay ascending.
    places = Pairs(row_ptr=torch.tensor([0, row.numel()]), latent=row, value=score, num_latents=num_rows)
    order = by_latent(places)
    return Pairs(
        row_ptr=order.latent_ptr,
        latent=latent.index_select(0, order.pair),
        value=score.index_select(0, order.pair),
        num_latents=candidates.num_latents,
    )


def _largest(pairs: Pairs, counts: Tensor) -> Pairs:
    """The ``counts[i]`` largest of the pairs of latent i; ties go to the lowest row."""
    order = by_latent(pairs)
    mask = torch.empty(len(pairs), dtype=torch.bool)
    tensors = (pairs.value, order.latent_ptr, order.pair, counts, mask)
    _mark_largest(*[t.numpy() for t in tensors])
    return pairs.keep(mask)


@compiled
def _mark_largest(value: Any, latent_ptr: Any, pair: Any, counts: Any, mask: Any) -> None:
    longest = 0
    for latent in range(counts.shape[0]):
        longest = max(longest, latent_ptr[latent + 1] - latent_ptr[latent])
    keys = np.empty(longest, np.int32)
    for latent in range(counts.shape[0]):
        first, count = latent_ptr[latent], counts[latent]
        found = latent_ptr[latent + 1] - first
        for i in range(found):
            keys[i] = key(value[pair[first + i]])
        least = keys[0]
        if count > 0:
            least = kth_key(keys, found, count)
        above = 0
        for i in range(found):
            above += keys[i] > least
        equal_left = count - above
        for i in range(found):
            mask[pair[first + i]] = keys[i] > least or (keys[i] == least and equal_left > 0)
            equal_left -= keys[i] == least
