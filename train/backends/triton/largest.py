"""TopK and Feature Choice: the largest of each row, and, with the roles of rows and latents swapped, of each
latent.

Screen, take as threshold what enough chunks of the row are sure to reach, compute the exact pre-activations
of all pairs that can reach it, and keep the largest of these. Rows with more candidates than there is room
for are done again with all their pre-activations. Legend: M rows and N columns (B and F, or for latents F and
B).
"""

from dataclasses import dataclass, replace

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from ..constants import spaced
from .candidates import candidates, least_of_rows, room_for
from .exact import exact_matrix
from .launch import kernel, launch
from .order import key_of
from .prepare import Factors, factors_of, matrix_rows, screening_pays
from .rounding import ScreenRows
from .screen import chunk_for, screen
from .transpose import by_latent


@kernel
def _keep_kernel(
    ptr, column, value, wanted, rows, out_ptr, out_column, out_value,
    room, N, COUNTS: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keep the ``wanted`` largest of a row's values, the first of equal ones, in their order.

    With DENSE the values are those of all N columns of row ``rows[program]``.
    """
    r = tl.program_id(0).to(tl.int64)
    if DENSE:
        first = r * N
        last = first + N
        r = tl.load(rows + r)
    else:
        first, last = tl.load(ptr + r), tl.load(ptr + r + 1)
    k = wanted
    if COUNTS:
        k = tl.load(wanted + r).to(tl.int32)
    if last <= room:
        lane = tl.arange(0, BLOCK)
        least = tl.full((BLOCK,), 0xFFFFFFFF, tl.uint32)
        most = tl.zeros((BLOCK,), tl.uint32)
        for start in range(first, last, BLOCK):
            i = start + lane
            key = key_of(tl.load(value + i, mask=i < last, other=0.0))
            least = tl.minimum(least, tl.where(i < last, key, least))
            most = tl.maximum(most, tl.where(i < last, key, most))
        # The key of the k-th largest is from found to top. Where k keys are above another, that one will do.
        found, top = tl.min(least, axis=0), tl.max(most, axis=0)
        while found < top:
            middle = found + ((top - found) >> 1) + ((top - found) & 1)
            reaching = tl.zeros((BLOCK,), tl.int32)
            for start in range(first, last, BLOCK):
                i = start + lane
                key = key_of(tl.load(value + i, mask=i < last, other=0.0))
                reaching += ((key >= middle) & (i < last)).to(tl.int32)
            number = tl.sum(reaching, axis=0)
            found = tl.where(number > k, middle, tl.where(number == k, middle - 1, found))
            top = tl.where(number > k, top, middle - 1)
        more = tl.zeros((BLOCK,), tl.int32)
        for start in range(first, last, BLOCK):
            i = start + lane
            key = key_of(tl.load(value + i, mask=i < last, other=0.0))
            more += ((key > found) & (i < last)).to(tl.int32)
        left = k - tl.sum(more, axis=0)  # how many of those equal to the k-th largest are kept
        equals = left * 0
        place = tl.load(out_ptr + r)
        for start in range(first, last, BLOCK):
            i = start + lane
            v = tl.load(value + i, mask=i < last, other=0.0)
            key = key_of(v)
            equal = ((key == found) & (i < last)).to(tl.int32)
            early = equals + tl.cumsum(equal, axis=0) <= left
            kept = (((key > found) & (i < last)) | ((equal > 0) & early)).to(tl.int32)
            to = place + tl.cumsum(kept, axis=0) - kept
            if DENSE:
                c = (i - first).to(tl.int64)
            else:
                c = tl.load(column + i, mask=i < last, other=0).to(tl.int64)
            tl.store(out_column + to, c, mask=kept > 0)
            tl.store(out_value + to, v, mask=kept > 0)
            equals += tl.sum(equal, axis=0)
            place += tl.sum(kept, axis=0)


@dataclass(frozen=True, kw_only=True)
class LargestPerRow:
    """A selection that the device may still be at work on; :meth:`finished` waits for it.

    Attributes:
        pairs: [M, N], right in all rows that have not overflown.
        ends: int64 [M], on the device: a row that ends beyond ``room`` has overflown. None: none has.
        wanted: of each row: an int, or int64 [M].
        factors: what it selects from. swapped: the rows are latents.
    """

    pairs: Pairs
    wanted: int | Tensor
    factors: Factors
    swapped: bool
    ends: Tensor | None = None
    room: int = 0

    def numbers(self) -> Tensor:
        """What :meth:`finished` reads, on the device: limits of the factors, and which rows overflew."""
        return self.factors.limits(above=self.ends, room=self.room, values=self.pairs.value)

    def finished(self, numbers_there: Tensor | None = None) -> Pairs:
        """The pairs, right in all rows. Reads from the device once.

        Args:
            numbers_there: :meth:`numbers`, where they were asked for already.

        Raises:
            NonFiniteError: a pre-activation is NaN, or too large for float32.
        """
        numbers = (self.numbers() if numbers_there is None else numbers_there).cpu().tolist()
        self.factors.check(numbers)
        if self.ends is not None and numbers[3]:
            self._select_whole_rows(self.overflown.nonzero()[:, 0])
            return self.pairs
        return self.pairs.with_num_positive(int(numbers[4]))

    @property
    def overflown(self) -> Tensor:
        """Which rows have overflown: bool [M], on the device."""
        if self.ends is None:
            return torch.zeros(self.pairs.num_rows, dtype=torch.bool, device=self.pairs.value.device)
        return self.ends > self.room

    def _select_whole_rows(self, rows: Tensor | None = None) -> None:
        """Select from all pre-activations of ``rows``; None: of all rows."""
        f = self.factors
        x, W, bias_of = (f.W, f.x, "row") if self.swapped else (f.x, f.W, "latent")
        every = spaced(0, len(x), 1, x.device)
        for some in (every if rows is None else rows).split(matrix_rows(len(W), W.device)):
            if rows is None and len(some) == len(x):
                part, bias = x, f.b
            else:
                part, bias = x[some], f.b[some] if self.swapped else f.b
            values = exact_matrix(part, W, bias, bias_of)
            keep_largest(self.pairs, self.wanted, values.view(-1), rows=some)


def keep_largest(
    pairs: Pairs,
    wanted: int | Tensor,
    value: Tensor,
    *,
    rows: Tensor | None = None,
    ptr: Tensor | None = None,
    column: Tensor | None = None,
) -> None:
    """Write the ``wanted`` largest values of each row to the places of ``pairs``, the first of equal ones.

    Args:
        value: float32, of candidates; row r has those from ``ptr[r]`` to ``ptr[r + 1]``, at ``column``. Rows
            that end beyond ``value`` are left out.
        rows: int64 [m]: ``value`` has all numbers of these rows instead, one row after the other.
    """
    dense, unused = rows is not None, pairs.row_ptr
    launch(
        _keep_kernel, (pairs.num_rows if rows is None else len(rows),),
        unused if ptr is None else ptr, unused if column is None else column, value, wanted,
        unused if rows is None else rows, pairs.row_ptr, pairs.latent, pairs.value,
        value.numel(), pairs.num_latents, COUNTS=isinstance(wanted, Tensor), DENSE=dense,
        BLOCK=1024 if dense else 128, num_warps=4 if dense else 1,
    )  # fmt: skip


def _select(f: Factors, wanted: int | Tensor, total: int, row_ptr: Tensor, *, swapped: bool) -> LargestPerRow:
    """The ``wanted`` largest of each of M rows, ``total`` in all, to ``row_ptr`` (int64 [M + 1])."""
    rows, columns, x, W = (f.W_rows, f.x_rows, f.W, f.x) if swapped else (f.x_rows, f.W_rows, f.x, f.W)
    num_rows, num_columns = len(x), len(W)
    # zeros: whatever goes wrong before the late check, the places stay inside
    latent, value = torch.zeros(3 * total, dtype=torch.int32, device=x.device).split([2 * total, total])
    out = LargestPerRow(
        pairs=Pairs(
            row_ptr=row_ptr,
            latent=latent.view(torch.int64),
            value=value.view(torch.float32),
            num_latents=num_columns,
        ),
        wanted=wanted,
        factors=f,
        swapped=swapped,
    )
    if num_rows == 0 or num_columns == 0 or total == 0:
        return out
    mean = total / num_rows
    if not screening_pays(x.device, x.shape[1], num_columns, mean):
        out._select_whole_rows()
        return out
    found = screen(rows, columns, f.b, chunk=chunk_for(num_columns, mean), bias_of_rows=swapped)
    least = least_of_rows(found, wanted)
    some = candidates(found, least, "row", room_for(num_rows, num_columns, total), x, W)
    keep_largest(out.pairs, wanted, some.value, ptr=some.ptr, column=some.column)
    return replace(out, ends=some.ptr[1:], room=some.room)


def queue_largest_per_row(
    x: Tensor, W: Tensor, b: Tensor, k: int, *, rounded_W: ScreenRows | None = None
) -> LargestPerRow:
    """:func:`largest_per_row` without waiting for the device: nothing is read from it."""
    if not 1 <= k <= len(W):
        raise ValueError(f"k must be from 1 to the number of latents, {len(W)}, got {k}")
    row_ptr = spaced(0, (len(x) + 1) * k, k, x.device)
    return _select(factors_of(x, W, b, rounded_W), k, k * len(x), row_ptr, swapped=False)


def largest_per_row(x: Tensor, W: Tensor, b: Tensor, k: int, *, rounded_W: ScreenRows | None = None) -> Pairs:
    """The ``k`` largest pre-activations of each row, the lowest latent first among equals; negative ones too.

    Args:
        x: float32 [B, D], centered. W: float32 [F, D]. b: float32 [F].
        rounded_W: :func:`.rounding.round_latents` of ``W``, if it is there already.

    Returns:
        Pairs [B, F], whose values are those of :func:`.exact.exact`, bit for bit.

    Raises:
        NonFiniteError: a pre-activation is NaN, or too large for float32.
    """
    selection = queue_largest_per_row(x, W, b, k, rounded_W=rounded_W)
    return selection.finished() if len(x) else selection.pairs


def largest_per_latent(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    counts: Tensor,
    *,
    total: int | None = None,
    rounded_W: ScreenRows | None = None,
) -> Pairs:
    """The ``counts[i]`` largest pre-activations of latent i, the lowest row first among equals.

    Args:
        x, W, b, rounded_W: as for :func:`largest_per_row`.
        counts: int64 [F], each from 0 to B.
        total: their sum, which is read from the device if it is not given.

    Returns:
        Pairs [B, F], whose values are those of :func:`.exact.exact`, bit for bit.

    Raises:
        NonFiniteError: a pre-activation is NaN, or too large for float32.
    """
    if counts.shape != (len(W),) or counts.dtype != torch.int64:
        raise ValueError(
            f"counts must be int64 [{len(W)}], one for each latent, got {counts.dtype} {counts.shape}"
        )
    total = int(counts.sum()) if total is None else total
    latent_ptr = torch.zeros(len(W) + 1, dtype=torch.int64, device=x.device)
    torch.cumsum(counts, 0, out=latent_ptr[1:])
    selection = _select(factors_of(x, W, b, rounded_W), counts, total, latent_ptr, swapped=True)
    found = selection.finished() if len(x) and len(W) else selection.pairs
    order = by_latent(found)  # the "latents" of the swapped pairs are rows
    return Pairs(
        row_ptr=order.latent_ptr,
        latent=order.row,
        value=found.value.index_select(0, order.pair),
        num_latents=len(W),
        num_positive=found.num_positive,
    )
