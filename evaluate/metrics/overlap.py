"""How many directions two SAEs share: mean max cosine similarity, and one-to-one matches.

MMCS (Sharkey et al. 2022) of A in B: the mean over the latents of A of the largest cosine with a latent of B.
It is not symmetric, and many latents of A may have the same best latent of B. The matching forbids that:
every latent is used once, and only pairs of cosine :data:`MATCH` or more count.
Legend: A, B latents of the two SAEs, D model width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ...train import SAE
from ...train.variants.losses.nfm import unit_rows
from ..results import Matching, Overlap
from .bootstrap import mean_interval
from .collapse import block_latents, sample_of

MATCH = 0.7  # as in the reference: directions of a smaller cosine are not the same feature
MAX_BLOCK = 4096  # latents a side of one assignment problem: 128 MiB, and some ten seconds
MAX_PAIRS = 20_000_000


def measure_overlap(
    a: tuple[str, SAE], b: tuple[str, SAE], *, num_sampled: int, match_latents: int, seed: int
) -> Overlap:
    """Measure how much two SAEs, each with its name, find of one another's decoder directions.

    Args:
        num_sampled: so many latents of each, drawn with ``seed``, are compared with all of the other.
        match_latents: the two are matched one to one if neither has more latents than this.
    """
    (name_a, sae_a), (name_b, sae_b) = a, b
    found = {}
    for key, one, other in (("mmcs_a_in_b", sae_a, sae_b), ("mmcs_b_in_a", sae_b, sae_a)):
        sample = sample_of(len(one.W_dec), num_sampled, seed).to(one.W_dec.device)
        found[key] = max_cosines(one.W_dec[sample], other.W_dec).double().numpy()
    intervals = {key: mean_interval(values, seed) for key, values in found.items()}
    small = max(len(sae_a.W_dec), len(sae_b.W_dec)) <= match_latents
    return Overlap(
        a=name_a,
        b=name_b,
        hook=sae_a.cfg.hook,
        mmcs_a_in_b=float(found["mmcs_a_in_b"].mean()),
        mmcs_b_in_a=float(found["mmcs_b_in_a"].mean()),
        num_a=len(found["mmcs_a_in_b"]),
        num_b=len(found["mmcs_b_in_a"]),
        matching=match_one_to_one(sae_a.W_dec, sae_b.W_dec) if small else None,
        intervals={key: interval for key, interval in intervals.items() if interval is not None},
    )


def max_cosines(W_a: Tensor, W_b: Tensor) -> Tensor:
    """The largest cosine of each row of ``W_a`` [A, D] with a row of ``W_b`` [B, D]: float32 [A]."""
    unit_b = unit_rows(W_b)
    blocks = torch.split(W_a, block_latents(len(W_b)))
    return torch.cat([(unit_rows(block) @ unit_b.T).max(1).values.cpu() for block in blocks])


def match_one_to_one(W_a: Tensor, W_b: Tensor) -> Matching | None:
    """Pair latents of cosine :data:`MATCH` or more so that each is used once and the sum of cosines is
    largest.

    Latents that no chain of such pairs connects do not compete. So the pairs fall into blocks, and the
    Hungarian method runs on each block: the result is that of one assignment of all, without its A * B
    matrix.

    Returns:
        None if a block has more than :data:`MAX_BLOCK` latents a side, as in a collapsed dictionary.
    """
    found = _pairs_above(W_a, W_b)
    if found is None:
        return None
    row, column, cosine = found
    matched: list[float] = []
    graph = coo_array((np.ones(len(row)), (row, column + len(W_a))), shape=(len(W_a) + len(W_b),) * 2)
    block = connected_components(graph, directed=False)[1][row]
    order = np.argsort(block, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        if len(part) == 1:
            matched.append(float(cosine[part[0]]))
        elif len(part):
            values = _assign(row[part], column[part], cosine[part])
            if values is None:
                return None
            matched.extend(values)
    smaller = min(len(W_a), len(W_b))
    mean = float(np.mean(matched)) if matched else None
    return Matching(matched=len(matched), share=len(matched) / smaller, mean_cosine=mean)


def _pairs_above(
    W_a: Tensor, W_b: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    """All pairs of cosine MATCH or more; None if they are more than :data:`MAX_PAIRS`."""
    unit_b, count = unit_rows(W_b), 0
    rows, columns, cosines = [], [], []
    size = block_latents(len(W_b))
    for start in range(0, len(W_a), size):
        cosine = unit_rows(W_a[start : start + size]) @ unit_b.T
        row, column = (cosine >= MATCH).nonzero(as_tuple=True)
        rows.append((row + start).cpu().numpy())
        columns.append(column.cpu().numpy())
        cosines.append(cosine[row, column].cpu().double().numpy())
        count += len(row)
        if count > MAX_PAIRS:
            return None
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(cosines)


def _assign(
    row: NDArray[np.int64], column: NDArray[np.int64], cosine: NDArray[np.float64]
) -> list[float] | None:
    """The cosines of the best one-to-one choice among a block's pairs; None if it is too large."""
    distinct_row, i = np.unique(row, return_inverse=True)
    distinct_column, j = np.unique(column, return_inverse=True)
    if max(len(distinct_row), len(distinct_column)) > MAX_BLOCK:
        return None
    gain = np.zeros((len(distinct_row), len(distinct_column)))  # 0 where a pair does not count
    gain[i, j] = cosine
    chosen = gain[linear_sum_assignment(gain, maximize=True)]
    return [float(value) for value in chosen[chosen > 0]]
