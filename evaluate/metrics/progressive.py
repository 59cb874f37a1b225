"""How well the codes reconstruct when only the largest k' latents of each row are kept ("progressive codes").

Gao et al. 2024, section 2.4 and figure 5; "Adaptive Sparse Allocation with Mutual Choice & Feature Choice
Sparse Autoencoders", appendix E.
Legend: B rows of a block, D model width, P pairs.
"""

import torch
from torch import Tensor

from ...common.fvu import RowVariance, fvu, sum_of_squares
from ...distributed.group import Group
from ...train import SAE, Pairs
from ...train.backends.choice import backend_of
from ..results import ProgressiveStep
from ..tree_sum import TreeSum
from .reconstruction import mean_row

KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ProgressiveStream:
    """FVU in the normalized space with the largest k' codes of each row, for every k' of :data:`KEPT`.

    The size of a code is |value| times the norm of its decoder row, which is what it adds to the
    reconstruction. One block costs about one decoding: each k' adds the codes that the one before it left
    out.
    """

    def __init__(self, sae: SAE, *, first_block: int = 0, block_0_BD: Tensor | None = None) -> None:
        """``first_block`` and ``block_0_BD`` are as for :class:`.ReconstructionStream`."""
        self._sae = sae
        self._norms_F = torch.linalg.vector_norm(sae.W_dec, dim=1)
        self._origin_D = None if block_0_BD is None else mean_row(block_0_BD)
        self._sums = TreeSum(first_block)  # the errors by k', the squares of x - origin, the sum of it [D]
        self._rows = 0
        self._pairs = torch.zeros(len(KEPT), dtype=torch.int64)
        self._longest = torch.zeros((), dtype=torch.int64)

    def update(self, x_BD: Tensor, codes: Pairs, without_codes_BD: Tensor | None = None) -> None:
        """Add a block: rows to reconstruct ``x_BD`` [B, D] float32, normalized, and the codes, on the SAE's
        device. ``without_codes_BD`` is what an SAE with a skip connection gives without codes; else b_dec.
        """
        if len(x_BD) == 0:
            return
        x = x_BD.cpu().double()
        if self._origin_D is None:
            self._origin_D = mean_row(x)
        variance = RowVariance(x.shape[1], origin=self._origin_D)
        variance.add(x)
        rank_P = rank_within_rows(codes, self._norms_F)
        longest = int(codes.row_ptr.diff().max())
        self._longest.clamp_(min=longest)
        backend, W_dec = backend_of(self._sae.W_dec), self._sae.W_dec
        start_BD = self._sae.b_dec.expand_as(x_BD) if without_codes_BD is None else without_codes_BD
        reconstruction_BD, before = start_BD.clone(), 0
        errors: list[Tensor] = []
        for i, kept in enumerate(KEPT):
            added = codes.keep((rank_P >= before) & (rank_P < kept)) if before < longest else None
            if added is not None:
                reconstruction_BD += backend.decode(added, W_dec, torch.zeros_like(self._sae.b_dec))
            changed = added is not None or not errors
            errors.append(sum_of_squares(reconstruction_BD.cpu().double() - x) if changed else errors[-1])
            self._pairs[i] += int((rank_P < kept).sum()) if kept < longest else len(codes)
            before = kept
        self._rows += len(x)
        self._sums.add(torch.cat([torch.stack([*errors, variance.squares]), variance.sum]))

    def collect(self, group: Group, owner: int) -> None:
        """Bring the sums of all processes of ``group``, which share the rows, to process ``owner``."""
        self._sums.collect(group, owner)
        self._pairs, self._longest = group.sum(self._pairs), group.max(self._longest)
        self._rows = group.add_up(self._rows)

    def result(self) -> list[ProgressiveStep]:
        """One step per k', the last of which keeps all codes of every row, if :data:`KEPT` goes so far."""
        sums = self._sums.total()
        if sums is None:
            return []
        *errors, squares = sums[: len(KEPT) + 1].tolist()
        variance = squares - float(sums[len(KEPT) + 1 :].square().sum()) / self._rows
        needed = next((kept for kept in KEPT if kept >= int(self._longest)), KEPT[-1])
        return [
            ProgressiveStep(kept=kept, l0=pairs / self._rows, fvu=fvu(error, variance))
            for kept, pairs, error in zip(KEPT, self._pairs.tolist(), errors, strict=True)
            if kept <= needed
        ]


def rank_within_rows(codes: Pairs, norms_F: Tensor) -> Tensor:
    """The place of each pair in its row, the largest |value| * norm first, from 0: int64 [P].

    Ties go to the lower latent.
    """
    row, size = codes.rows(), codes.value.abs() * norms_F[codes.latent]
    order = torch.sort(size, descending=True, stable=True).indices
    order = order[torch.sort(row[order], stable=True).indices]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - codes.row_ptr[row[order]]
    return rank
