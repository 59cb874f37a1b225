"""The interface of a backend: selections, sparse products and the optimizer's step, on plain torch tensors.

A new backend is a new folder beside ``plain`` and ``compiled``; see CONTRIBUTING.md. Its tests inherit
``BackendContract``, which compares every operation with ``plain`` and with the definitions in
:mod:`..selection.reference`.

Legend: B rows, D model width, F latents, P pairs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..pairs import Pairs
from .gates import Gates
from .sources import Encoder


@dataclass(frozen=True, kw_only=True, eq=False)
class AdamSettings:
    """Settings of a step of Adam (Kingma & Ba 2015); ``decoupled`` is AdamW (Loshchilov & Hutter 2019).

    Attributes:
        gradient_scale: multiplies the gradient first, for clipping. A tensor (float64 [], on the device of
            the parameter) spares the host from reading it; if it is NaN, nothing is changed.
    """

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.0
    decoupled: bool = False  # weight decay is subtracted from the weights, not added to the gradient
    gradient_scale: float | Tensor = 1.0


Agree = Callable[[Tensor], Tensor]
"""Takes a number of each row from every process, float32 [b], and returns the least of each row to all."""

SearchRows = Callable[[Encoder, int, int], AbstractContextManager[Callable[[Agree], Pairs]]]


class Selections(Protocol):
    """The selection rules. A backend's select from a :data:`.sources.Source`.

    They return :class:`Pairs` in row order; their values are the numbers that were compared. The
    pre-activations of an :class:`.sources.Encoder` are ``sddmm(pairs, x_centered, W_enc) + b_enc[latent]``,
    whichever product screened them; the number of threads and the block size never change a selection.
    """

    def largest_per_row(self, source: Any, k: int) -> Pairs:
        """Select the ``k`` largest of each row, negative ones too; ties go to the lowest latent."""

    def largest_of_batch(self, source: Any, total: int, hint: Tensor | None) -> tuple[Pairs, Tensor | None]:
        """Select the ``total`` largest of all, negative ones too; ties go to the lowest (row, latent).

        ``hint`` (float32 []) is a guess of their threshold from an earlier batch; it changes the time, never
        the result. Returns the pairs and the guess for the next batch, which is None if ``total`` is 0.
        """

    def largest_per_latent(self, source: Any, counts: Tensor) -> Pairs:
        """Select the ``counts[i]`` (int64 [F]) largest rows of latent i; ties go to the lowest row."""

    @property
    def search_rows(self) -> SearchRows | None:
        """Opens a search of this process for its part of the ``k`` largest of each row, whose latents several
        processes share; None: a search would be no faster than :meth:`largest_per_row`.

        ``search_rows(encoder, k, num_leaders)`` fails on entry, if at all. ``search(agree)`` then finds all
        pairs of this process that can be among the largest, at most ``k`` in a row. For every
        ``8 * encoder.rows_per_block`` rows it calls ``agree`` once, with the least of ``num_leaders`` large
        pre-activations of each row.
        """

    def above(self, source: Any, threshold: Tensor) -> Pairs:
        """Select pairs strictly above their latent's ``threshold``, float32 [F]; infinity selects none."""


class Backend(Selections, Protocol):
    """The functions of a backend module: the operations of a training step that differ between devices."""

    nests: bool
    """Whether :meth:`reconstruct_nested` goes along the pairs once, however many sets there are."""

    def sddmm(self, pairs: Pairs, g: Tensor, W: Tensor) -> Tensor:
        """<g[row], W[latent]> of every pair: [P] from [B, D] and [F, D]; the pairs' values are not used.

        The bits of a pair's product do not depend on the other pairs. With x_centered and W_enc it defines
        the pre-activations that selections compare.
        """

    def decode(self, pairs: Pairs, W: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias + sum over a row's pairs of value * W[latent]: [B, D]."""

    def add_decoded(self, pairs: Pairs, W: Tensor, sums: Tensor) -> None:
        """sums[row] += value * W[latent] for a row's pairs, one after the other: ``sums`` is [B, D].

        Two calls, with the pairs of some latents and then with those of higher ones, give the bits of
        :meth:`decode` (without a bias, of both) from zeros: processes that share the latents add up so.
        """

    def reconstruct(
        self, codes: Pairs, W_dec: Tensor, target: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode ``codes`` without bias and compare with ``target`` [B, D].

        Returns:
            error = codes W_dec - target [B, D]; scale * <error[row], W_dec[latent]> of every pair, [P]; and
            the sum of the squares of the error, float64 [].
        """

    def reconstruct_nested(
        self, rings: Pairs, W_dec: Tensor, target: Tensor, weights: Sequence[float], scale: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode nested sets of codes, G for each row, and compare each with ``target`` [B, D].

        ``rings`` [B * G, F]: row b * G + h has the codes that set h of row b has beyond those of set h - 1.

        Returns:
            With e_g [B, D] the error of set g, and s_h = scale * sum over g >= h of weights[g] * e_g: the
            error of the last set, [B, D]; s, row b * G + h for set h of row b, [B * G, D];
            <s[row], W_dec[latent]> of every pair, [P]; and the sum of the squares of each e_g, float64 [G].
        """

    def weight_gradients(
        self,
        codes: Pairs,
        d_pre: Tensor,
        x_centered: Tensor,
        error: Tensor,
        scale: float,
        W_enc_grad: Tensor,
        W_dec_grad: Tensor,
    ) -> Tensor:
        """Add the gradients of both matrices [F, D] over the pairs of ``codes``, in a fixed order.

        W_enc_grad[latent] += sum of d_pre * x_centered[row], W_dec_grad[latent] += sum of scale * value *
        error[row], with ``d_pre`` [P], ``x_centered`` and ``error`` [B, D]. Codes may also be rings as those
        of :meth:`reconstruct_nested`, [B * G, F], and ``error`` [B * G, D]: each row of ``x_centered`` then
        serves its G rings, whose latents ascend from ring to ring if the backend does not nest.

        Returns:
            The sum of ``d_pre`` over the pairs of each latent, [F].
        """

    def count_active(self, codes: Pairs) -> tuple[Tensor, Tensor]:
        """Count the values other than 0: those of each row, int64 [B], and of each latent, int64 [F]."""

    def accumulate_by_latent(self, pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
        """out[latent] += sum over the latent's pairs of coefficient * source[row], in a fixed order.

        ``coefficient`` [P], ``source`` [B, D], ``out`` [F, D]; the pairs' values are not used.
        """

    def sum_per_latent(self, pairs: Pairs, values: Tensor) -> Tensor:
        """The sum of ``values`` [P] over the pairs of each latent: [F], in a fixed order."""

    def random_uniform(
        self,
        seed: int,
        batch: int,
        row0: int,
        rows: int,
        num_latents: int,
        device: torch.device | str,
        first_latent: int = 0,
    ) -> Tensor:
        """Draw numbers in (0, 1) for rows ``row0`` to ``row0 + rows - 1`` of a batch: float32 [rows, F].

        The columns are the ``num_latents`` latents from ``first_latent`` on.

        Each is a function of (``seed``, ``batch``, row, latent) alone, the same on every backend: the one of
        :mod:`.plain.random_numbers`. ``seed`` and ``batch`` are from 0 to 2**64 - 1.
        """

    def rank_gates(self, a: Tensor, gates: Gates) -> Tensor:
        """Rank the pre-activations ``a`` [b, F] of a block by their gates: float32 [b, F].

        With t = (LayerNorm(a) + log u - log(1 - u)) / beta it is λ |a| - σ(-t), or t if λ is 0.
        """

    def sum_rows(self, pre: Tensor, *, positive: bool, entropy: bool) -> Tensor:
        """Sums over the rows of ``pre`` [b, F]; with ``positive`` of what ReLU leaves of it.

        Returns:
            The sums of the squares, [1, F]; for ``entropy`` those of the values z and of z log z, [2, F].
        """

    def gradient_norm(self, gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
        """The L2 norm of ``gradient`` [F, D] (or [D]): float64 []; not finite if an entry is not.

        With ``unit_rows_of`` [F, D] the part of each row along that row is removed first.
        """

    def row_squares(self, gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
        """The squares whose sum :meth:`gradient_norm` takes the root of: of each row, float64 [F]."""

    def global_norm(self, gradients: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """The L2 norm of all ``gradients`` together, each with its ``unit_rows_of``: float64 []."""

    def clip(self, figures: Tensor, limit: float | None, unsound: Tensor) -> Tensor:
        """The factor that clipping multiplies gradients by, float64 [] on the device.

        It is NaN, so that :meth:`adam_step` changes nothing, from the first call on whose ``figures`` are not
        all finite: ``unsound`` (float64 []) is 0 before, and is made NaN then.

        Args:
            figures: float64 [n]; the last one is the gradients' global norm.
            limit: the largest norm; None does not clip.
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
