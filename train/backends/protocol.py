"""The interface of a backend: selections, sparse products and the optimizer's step, on plain torch tensors.

A new backend is a new folder beside ``plain`` and ``compiled``; see CONTRIBUTING.md. Its tests inherit
``BackendContract``, which compares every operation with ``plain`` and with the definitions in
:mod:`..selection.reference`.

Legend: B rows, D model width, F latents, P pairs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..pairs import Pairs
from .sources import Source


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Settings of a step of Adam (Kingma & Ba 2015); ``decoupled`` is AdamW (Loshchilov & Hutter 2019)."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.0
    decoupled: bool = False  # weight decay is subtracted from the weights, not added to the gradient
    gradient_scale: float = 1.0  # multiplies the gradient first, for clipping


class Backend(Protocol):
    """The functions of a backend module: the operations of a training step that differ between devices.

    Selections return :class:`Pairs` in row order; their values are the numbers that were compared. The
    pre-activations of an :class:`.sources.Encoder` are ``sddmm(pairs, x_centered, W_enc) + b_enc[latent]``,
    whichever product screened them; the number of threads and the block size never change a selection.
    """

    def largest_per_row(self, source: Source, k: int) -> Pairs:
        """Select the ``k`` largest of each row, negative ones too; ties go to the lowest latent."""

    def largest_of_batch(
        self, source: Source, total: int, hint: Tensor | None
    ) -> tuple[Pairs, Tensor | None]:
        """Select the ``total`` largest of all, negative ones too; ties go to the lowest (row, latent).

        ``hint`` (float32 []) is a guess of their threshold from an earlier batch; it changes the time, never
        the result. Returns the pairs and the guess for the next batch, which is None if ``total`` is 0.
        """

    def largest_per_latent(self, source: Source, counts: Tensor) -> Pairs:
        """Select the ``counts[i]`` (int64 [F]) largest rows of latent i; ties go to the lowest row."""

    def above(self, source: Source, threshold: Tensor) -> Pairs:
        """Select pairs strictly above their latent's ``threshold``, float32 [F]; infinity selects none."""

    def sddmm(self, pairs: Pairs, g: Tensor, W: Tensor) -> Tensor:
        """<g[row], W[latent]> of every pair: [P] from [B, D] and [F, D]; the pairs' values are not used.

        The bits of a pair's product do not depend on the other pairs. With x_centered and W_enc it defines
        the pre-activations that selections compare.
        """

    def decode(self, pairs: Pairs, W: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias + sum over a row's pairs of value * W[latent]: [B, D]."""

    def accumulate_by_latent(self, pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
        """out[latent] += sum over the latent's pairs of coefficient * source[row], in a fixed order.

        ``coefficient`` [P], ``source`` [B, D], ``out`` [F, D]; the pairs' values are not used.
        """

    def sum_per_latent(self, pairs: Pairs, values: Tensor) -> Tensor:
        """The sum of ``values`` [P] over the pairs of each latent: [F], in a fixed order."""

    def random_uniform(
        self, seed: int, batch: int, row0: int, rows: int, num_latents: int, device: torch.device | str
    ) -> Tensor:
        """Draw numbers in (0, 1) for rows ``row0`` to ``row0 + rows - 1`` of a batch: float32 [rows, F].

        Each is a function of (``seed``, ``batch``, row, latent) alone, the same on every backend: the one of
        :mod:`.plain.random_numbers`. ``seed`` and ``batch`` are from 0 to 2**64 - 1.
        """

    def gradient_norm(self, gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
        """The L2 norm of ``gradient`` [F, D] (or [D]): float64 []; not finite if an entry is not.

        With ``unit_rows_of`` [F, D] the part of each row along that row is removed first.
        """

    def adam_step(
        self,
        parameter: Tensor,
        gradient: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        step: int,
        settings: AdamSettings,
        *,
        unit_rows: bool = False,
    ) -> None:
        """Update ``parameter`` [F, D] (or [D]) and its moments in place; ``step`` is 1 for the first.

        With ``unit_rows`` the rows have norm 1 and keep it: the gradient's part along each row is removed,
        and each updated row is divided by its norm.
        """
