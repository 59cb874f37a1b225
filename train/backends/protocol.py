"""What a backend must offer: selections, sparse products and the optimizer's pass, on plain torch tensors.

A new backend is a new folder beside ``plain`` and ``compiled``; see CONTRIBUTING.md. Its tests inherit
``BackendContract``, which compares every operation with ``plain`` and with the plain definitions in
:mod:`..selection.reference`.

Legend: B rows, D model width, F latents, P pairs.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..pairs import Pairs
from .sources import Source


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Of one step. Kingma & Ba 2015; ``decoupled`` is AdamW, Loshchilov & Hutter 2019."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.0
    decoupled: bool = False  # weight decay is taken from the weights, not added to the gradient
    gradient_scale: float = 1.0  # multiplies the gradient first: clipping


class Backend(Protocol):
    """The operations of a training step whose cost depends on the device: the functions of a backend module.

    Selections return :class:`Pairs` in row order whose values are what was compared. Pre-activations of an
    :class:`.sources.Encoder` are ``sddmm(pairs, x_centered, W_enc) + b_enc[latent]``, whatever product
    screened them; a selection never depends on other rows of the batch, on threads or on block sizes.
    """

    def largest_per_row(self, source: Source, k: int) -> Pairs:
        """The ``k`` largest of each row, the lowest latent first among equals; negative ones too."""

    def largest_of_batch(
        self, source: Source, total: int, hint: Tensor | None
    ) -> tuple[Pairs, Tensor | None]:
        """The ``total`` largest of all, the lowest (row, latent) first among equals; negative ones too.

        ``hint`` (float32 []) is a guess of their threshold from an earlier batch; it changes the time, never
        the result. Beside the pairs comes the guess for the next batch; None when ``total`` is 0.
        """

    def largest_per_latent(self, source: Source, counts: Tensor) -> Pairs:
        """The ``counts[i]`` (int64 [F]) largest rows of latent i, the lowest row first among equals."""

    def above(self, source: Source, threshold: Tensor) -> Pairs:
        """The pairs strictly above their latent's ``threshold``, float32 [F]; infinity admits none."""

    def sddmm(self, pairs: Pairs, g: Tensor, W: Tensor) -> Tensor:
        """<g[row], W[latent]> of every pair: [P] from [B, D] and [F, D], whatever the pairs' values.

        A pair's product does not depend on the other pairs, bit for bit: with x_centered and W_enc it defines
        the pre-activations that selections compare.
        """

    def decode(self, pairs: Pairs, W: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias + sum over a row's pairs of value * W[latent]: [B, D]."""

    def accumulate_by_latent(self, pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
        """out[latent] += sum over the latent's pairs of coefficient * source[row], in a fixed order.

        ``coefficient`` [P], ``source`` [B, D], ``out`` [F, D]; the pairs' values are not looked at.
        """

    def sum_per_latent(self, pairs: Pairs, values: Tensor) -> Tensor:
        """The sum of ``values`` [P] over the pairs of each latent: [F], in a fixed order."""

    def gradient_norm(self, gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
        """L2 norm of ``gradient`` [F, D] (or [D]): float64 []; not finite when an entry is not.

        With ``unit_rows_of`` [F, D], of what is left of each row without its part along that row.
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

        With ``unit_rows`` the rows have norm 1 and keep it: the gradient's part along each row is left out,
        and the updated row is divided by its norm.
        """
