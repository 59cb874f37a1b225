"""Matrix products and sums with the same bits whatever the number of threads.

Libraries split long sums over threads, and then the number of threads decides how they are rounded. Here the
split depends on the sizes only, and every part is summed by one thread.
"""

import torch
from torch import Tensor

from .threads import run_parts

SUM_PART = 16384  # below what torch splits over threads


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
    """a @ b into ``out``, or added to it: [n, m], [m, p], [n, p]."""
    if out is None:
        out = a.new_empty(a.shape[0], b.shape[1])
    if a.device.type != "cpu":
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)

    def part(start: int, stop: int) -> None:
        if add:
            out[start:stop].addmm_(a[start:stop], b)
        else:
            torch.mm(a[start:stop], b, out=out[start:stop])

    run_parts(part, a.shape[0], part_of(a.shape[0]))
    return out


def weighted_sum(weight: Tensor, rows: Tensor) -> Tensor:
    """weight @ rows: [n], [n, p] -> [p]."""
    if rows.device.type != "cpu":
        return weight @ rows
    size = part_of(rows.shape[0])
    sums = rows.new_empty(-(-rows.shape[0] // size), rows.shape[1])

    def part(start: int, stop: int) -> None:
        torch.mv(rows[start:stop].T, weight[start:stop], out=sums[start // size])

    run_parts(part, rows.shape[0], size)
    return sums.sum(0)


def total(x: Tensor) -> Tensor:
    """The sum of all values, []."""
    return torch.stack([part.sum() for part in torch.split(x.flatten(), SUM_PART)]).sum()


def part_of(size: int) -> int:
    """64 parts of a large ``size``, parts of 64 of a smaller one; two parts at least, for two threads."""
    return -(-size // 64) if size > 4096 else max(1, min(64, -(-size // 2)))
