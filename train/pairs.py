"""Sparse codes: the (row, latent, value) triples of a batch, in compressed rows.

Legend: B rows of the batch, F latents, P pairs.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
ROWS = "rows"  # the key of what :meth:`Pairs.rows` returns


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The nonzero entries of a [B, F] code matrix by rows (CSR). A step costs O(P), not O(B * F).

    Attributes:
        row_ptr: int64 [B + 1]; the pairs of row ``b`` are ``row_ptr[b]:row_ptr[b + 1]``.
        latent: int64 [P], strictly ascending within a row.
        value: float32 [P].
        num_latents: F.
        num_positive: how many values are above 0, if the host knows it.
        made: what :meth:`once` has made for these places.
    """

    row_ptr: Tensor
    latent: Tensor
    value: Tensor
    num_latents: int
    num_positive: int | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the result of ``make()``, called once per ``key`` for these places.

        :meth:`with_value` shares the result. Several products need, for example, the order by latents.
        """
        if key not in self.made:
            self.made[key] = make()
        made: Made = self.made[key]
        return made

    @property
    def num_rows(self) -> int:
        """B."""
        return self.row_ptr.numel() - 1

    def __len__(self) -> int:
        """P."""
        return self.latent.numel()

    def rows(self) -> Tensor:
        """The row of each pair: int64 [P], ascending; made once for these places."""
        return self.once(ROWS, self._rows)

    def _rows(self) -> Tensor:
        index = torch.arange(self.num_rows, device=self.row_ptr.device)
        return torch.repeat_interleave(index, self.row_ptr.diff(), output_size=len(self))

    def with_value(self, value: Tensor) -> "Pairs":
        """The same places with other values ``value``, [P]."""
        same_places = replace(self, value=value, num_positive=None)
        object.__setattr__(same_places, "made", self.made)
        return same_places

    def with_num_positive(self, num_positive: int) -> "Pairs":
        """The same pairs, of whose values ``num_positive`` are known to be above 0."""
        same_places = replace(self, num_positive=num_positive)
        object.__setattr__(same_places, "made", self.made)
        return same_places

    def keep(self, mask: Tensor, count: int | None = None) -> "Pairs":
        """Drop the pairs where ``mask`` (bool [P]) is False; the number of rows stays the same.

        ``count`` is how many are kept; None reads it from the device.
        """
        count = int(mask.sum()) if count is None else count
        if count == len(self):
            return self
        kept = torch.zeros(len(self) + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(mask, 0, out=kept[1:])
        places = torch.nonzero_static(mask, size=count).flatten()
        return Pairs(
            row_ptr=kept.index_select(0, self.row_ptr),
            latent=self.latent.index_select(0, places),
            value=self.value.index_select(0, places),
            num_latents=self.num_latents,
        )

    def positive(self) -> "Pairs":
        """The pairs whose value is above 0."""
        if self.num_positive == len(self):
            return self
        kept = self.keep(self.value > 0, self.num_positive)
        return kept.with_num_positive(len(kept))

    def slice_rows(self, start: int, stop: int) -> "Pairs":
        """Rows ``start:stop``, as views of the same memory except for ``row_ptr``."""
        if start == 0 and stop >= self.num_rows:
            return self
        first, last = int(self.row_ptr[start]), int(self.row_ptr[stop])
        return Pairs(
            row_ptr=self.row_ptr[start : stop + 1] - first,
            latent=self.latent[first:last],
            value=self.value[first:last],
            num_latents=self.num_latents,
            num_positive=last - first if self.num_positive == len(self) else None,
        )

    def join_rows(self, num_rows: int) -> "Pairs":
        """The same pairs in ``num_rows`` rows, each of as many consecutive rows, whose latents ascend."""
        if num_rows == self.num_rows:
            return self
        ends = self.row_ptr[:: self.num_rows // max(num_rows, 1)].contiguous()
        return Pairs(row_ptr=ends, latent=self.latent, value=self.value, num_latents=self.num_latents)

    def count_per_latent(self) -> Tensor:
        """The number of rows that use each latent: int64 [F]."""
        return torch.bincount(self.latent, minlength=self.num_latents)

    def to_dense(self) -> Tensor:
        """The matrix, float32 [B, F]; for tests and small batches."""
        dense = torch.zeros(self.num_rows, self.num_latents, dtype=self.value.dtype, device=self.value.device)
        dense[self.rows(), self.latent] = self.value
        return dense

    @staticmethod
    def from_dense(dense: Tensor) -> "Pairs":
        """The nonzero entries of ``dense`` [B, F]."""
        row, latent = dense.nonzero(as_tuple=True)
        return Pairs.from_rows(row, latent, dense[row, latent], dense.shape[0], dense.shape[1])

    @staticmethod
    def from_rows(row: Tensor, latent: Tensor, value: Tensor, num_rows: int, num_latents: int) -> "Pairs":
        """Pairs of triples in ascending (row, latent) order: ``row``, ``latent`` int64 [P], ``value`` [P]."""
        row_ptr = torch.zeros(num_rows + 1, dtype=torch.int64, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=num_rows), 0, out=row_ptr[1:])
        return Pairs(row_ptr=row_ptr, latent=latent, value=value, num_latents=num_latents)
