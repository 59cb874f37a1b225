"""Matrix products, sums and sparse products in torch operations.

Libraries split long sums over threads, so their rounding depends on the number of threads. Here the split
depends on the sizes only, and one thread adds up each part.

Legend: B rows, D model width, F latents, P pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....common.fvu import SUM_PART
from ...pairs import Pairs
from ..threads import run_parts

CHUNK_PAIRS = 1 << 14  # pairs whose rows are gathered at a time: 2 x 50 MB at D = 768
GPU_CHUNK_PAIRS = 1 << 18  # a GPU needs far larger chunks to be busy
FEW_COLUMNS = 32


def matmul(
    a: Tensor,
    b: Tensor,
    out: Tensor | None = None,
    *,
    add: bool = False,
    part_rows: int | None = None,
    columns: int | None = None,
    terms: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Write a @ b into ``out``, or ``add`` it to ``out``: [n, m], [m, p], [n, p].

    A ``bias`` [p] is added to each row of a product that is written.

    A library may round an entry of a product otherwise if the product has another size. In main memory
    ``part_rows``, ``columns`` and ``terms`` therefore set the largest n, p and m of the products that it is
    asked for: slices of the latents, whoever holds them. None takes :func:`part_of` n, all p and all m.
    """
    if out is None:
        out = a.new_empty(a.shape[0], b.shape[1])
    assert bias is None or not add
    if a.device.type != "cpu":
        if add:
            return out.addmm_(a, b)
        return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)
    columns, terms = columns or max(1, b.shape[1]), terms or max(1, b.shape[0])

    def part(start: int, stop: int) -> None:
        for first in range(0, b.shape[1], columns):
            some = slice(first, first + columns)
            sums = out[start:stop, some]
            for m in range(0, b.shape[0], terms):
                x, y = a[start:stop, m : m + terms], b[m : m + terms, some]
                if add or m:
                    sums.addmm_(x, y)
                else:
                    torch.mm(x, y, out=sums)

    run_parts(part, a.shape[0], part_rows or part_of(a.shape[0]))
    return out if bias is None else out.add_(bias)


def weighted_sum(weight: Tensor, rows: Tensor) -> Tensor:
    """weight @ rows: [n], [n, p] -> [p]."""
    if rows.device.type != "cpu":
        return weight @ rows
    return sums_of_parts(weight, rows, part_of(rows.shape[0])).sum(0)


def sums_of_parts(weight: Tensor, rows: Tensor, size: int) -> Tensor:
    """weight @ rows of every ``size`` consecutive rows: [n], [n, p] -> [ceil(n / size), p]."""
    sums = rows.new_empty(-(-rows.shape[0] // size), rows.shape[1])

    def part(start: int, stop: int) -> None:
        torch.mv(rows[start:stop].T, weight[start:stop], out=sums[start // size])

    run_parts(part, rows.shape[0], size)
    return sums


def total(x: Tensor) -> Tensor:
    """The sum of all values, []."""
    if x.device.type != "cpu":
        return x.sum()
    return torch.stack([part.sum() for part in torch.split(x.flatten(), SUM_PART)]).sum()


def part_of(size: int) -> int:
    """The length of parts of ``size``: 64 parts of a large one, parts of 64 or less (two at least) else."""
    return -(-size // 64) if size > 4096 else max(1, min(64, -(-size // 2)))


@dataclass(frozen=True, kw_only=True)
class LatentMajor:
    """The places of pairs [B, F], ordered by latents, and by ascending rows within a latent.

    Attributes:
        latent_ptr: int64 [F + 1]; the pairs of latent ``i`` are ``latent_ptr[i]:latent_ptr[i + 1]``.
        row: int64 [P], the row of each pair.
        pair: int64 [P], the place of each pair in row order; ``values[pair]`` brings values [P] into this
            order.
    """

    latent_ptr: Tensor
    row: Tensor
    pair: Tensor


def by_latent(pairs: Pairs) -> LatentMajor:
    """Transpose the places of ``pairs``; the result is kept in ``pairs``."""
    return pairs.once("by_latent", lambda: _sort_by_latent(pairs))


def _sort_by_latent(pairs: Pairs) -> LatentMajor:
    pair = pairs.latent.argsort(stable=True)
    latent_ptr = torch.zeros(pairs.num_latents + 1, dtype=torch.int64, device=pair.device)
    torch.cumsum(pairs.count_per_latent(), 0, out=latent_ptr[1:])
    return LatentMajor(latent_ptr=latent_ptr, row=pairs.rows()[pair], pair=pair)


def sddmm(pairs: Pairs, g: Tensor, W: Tensor) -> Tensor:
    """<g[row], W[latent]> of every pair: [P] from [B, D] and [F, D]."""
    return dot_products(g, W, pairs.rows(), pairs.latent)


def dot_products(g: Tensor, W: Tensor, row: Tensor, latent: Tensor) -> Tensor:
    """<g[row[p]], W[latent[p]]> of all p: [P] from [B, D], [F, D] and int64 [P]."""
    size = CHUNK_PAIRS if g.device.type == "cpu" else GPU_CHUNK_PAIRS
    parts = zip(torch.split(row, size), torch.split(latent, size), strict=True)
    sums = [_sum_of_columns(g.index_select(0, r).mul_(W.index_select(0, i))) for r, i in parts]
    return torch.cat(sums)


def _sum_of_columns(products: Tensor) -> Tensor:
    """The sum of each row of ``products`` [n, D], which are overwritten: [n].

    The columns are folded: the last ones are added to the first ones, until one is left. This order depends
    on D only. torch.sum splits a row over threads by the number of rows on a GPU, so the bits of a row would
    depend on the others. Sums and products of two numbers are the same on every device.
    """
    width = products.shape[1]
    while width > FEW_COLUMNS:
        kept = -(-width // 2)
        products[:, : width - kept] += products[:, kept:width]
        width = kept
    columns = products[:, :width].T.contiguous()  # so that additions run along the rows
    while width > 1:
        kept = -(-width // 2)
        columns[: width - kept] += columns[kept:width]
        width = kept
    return columns[0]


def decode(pairs: Pairs, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """bias + sum over a row's pairs of value * W[latent]: [B, D]."""
    decoded = torch.nn.functional.embedding_bag(
        pairs.latent, W, pairs.row_ptr[:-1], mode="sum", per_sample_weights=pairs.value
    )
    return decoded if bias is None else decoded.add_(bias)


def add_decoded(pairs: Pairs, W: Tensor, sums: Tensor) -> None:
    """See :meth:`..protocol.Backend.add_decoded`. The sums so far are a first pair of each row."""
    shift = torch.arange(pairs.num_rows + 1, device=W.device)
    first = pairs.row_ptr[:-1] + shift[:-1]
    place = torch.arange(len(pairs), device=W.device) + pairs.rows() + 1
    row = W.shape[0] + shift[:-1]
    index = pairs.latent.new_empty(len(pairs) + pairs.num_rows)
    scale = pairs.value.new_ones(len(index))
    index[first], index[place] = row, pairs.latent
    scale[place] = pairs.value
    table = torch.cat([W, sums])
    sums.copy_(torch.nn.functional.embedding_bag(index, table, first, mode="sum", per_sample_weights=scale))


def accumulate_by_latent(pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
    """out[latent] += sum over the latent's pairs of coefficient * source[row]."""
    order = by_latent(pairs)
    out += torch.nn.functional.embedding_bag(
        order.row, source, order.latent_ptr[:-1], mode="sum", per_sample_weights=coefficient[order.pair]
    )


def sum_per_latent(pairs: Pairs, values: Tensor) -> Tensor:
    """The sum of ``values`` [P] over the pairs of each latent: [F], in the dtype of ``values``."""
    order = by_latent(pairs)  # bincount with weights adds up in the order of atomics on a GPU
    return torch.nn.functional.embedding_bag(
        order.pair, values[:, None], order.latent_ptr[:-1], mode="sum"
    ).flatten()
