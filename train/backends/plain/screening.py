"""Find the few pre-activations that a selection must compute one by one: a matrix product screens all pairs.

The pre-activation of row x and latent (w, b) is *defined* as p = fl(dot(x, w) + b), with the dot product of
:func:`.products.sddmm`. A matrix product gives a score q for x·w. torch may read the numbers of a float32
product with fewer bits, x' and w' (``torch.set_float32_matmul_precision``): with ε = 2⁻¹⁰ as TF32, which has
10 bits after the leading one, with ε = 2⁻⁷ as bfloat16, which has 7. These are twice the errors of rounding,
because some devices cut bits off: |x - x'| <= ε |x| and |w - w'| <= ε |w|. With u = 2⁻²⁴ and
γ(n) = n u / (1 - n u)

    |x·w - x'·w'|  <= (2 ε + ε²) |x||w|
    |q - x'·w'|    <= γ(4 D) (1 + ε)² |x||w|        in any order of the sum, and as a tensor core adds up
    |p - (x·w + b)| <= γ(D) |x||w| + u |dot + b|    (:mod:`..triton.rounding`, :mod:`..bounds`)

and therefore |p - (q + b)| <= κ |x||w| + ROUNDING |q + b| + FLOOR, where κ is the sum of the factors of
|x||w|. No probabilities are involved. ε is what torch is set to or what a trial on the device shows
(:func:`product_error`), whichever is larger. float64 obeys the same bounds.

Legend: B rows, b rows of a block, D model width, F latents, P candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import inf

import torch
from torch import Tensor

from ...selection.errors import check_not_nan
from ..block_pairs import BlockPairs
from ..bounds import (
    FLOOR,
    LARGEST_PRE_ACTIVATION,
    ROUNDING,
    SMALLEST_NORM,
    RowNorms,
    check_finite_factors,
    gamma,
)
from ..scratch import borrowed
from ..sources import Encoder, Source
from .products import dot_products, matmul

READING_ERRORS = {"ieee": 0.0, "none": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}  # ε of torch's settings
TRIAL_ROWS, TRIAL_LATENTS = 64, 512


@dataclass(frozen=True, eq=False)
class ScreenedBlock:
    """Pre-activations of consecutive rows, each known up to an error.

    Attributes:
        first_row: the number of the first row in the batch.
        score: [b, F]; overwritten by the next block.
        error: [b, F], how far the pre-activation can be from the score; None: the scores are the numbers that
            selections compare.
        encoder: computes the pre-activations.
    """

    first_row: int
    score: Tensor
    error: Tensor | None = None
    encoder: Encoder | None = None

    def lower(self) -> Tensor:
        """Numbers that the pre-activations reach, [b, F]."""
        return self.score if self.error is None else self.score - self.error

    def upper(self) -> Tensor:
        """Numbers that the pre-activations do not exceed, [b, F]."""
        return self.score if self.error is None else self.score + self.error

    def candidates(self, mask: Tensor) -> BlockPairs:
        """The pairs where ``mask`` (bool [b, F]) is True, with their exact pre-activations."""
        row, latent = mask.nonzero(as_tuple=True)
        if self.encoder is None:
            value = self.score[row, latent]
        else:
            x, W, b = self.encoder.x_centered, self.encoder.W_enc, self.encoder.b_enc
            value = dot_products(x, W, row + self.first_row, latent).add_(b.index_select(0, latent))
        return BlockPairs(self.first_row, mask.sum(1), latent, value)


def screened_blocks(source: Source) -> Iterator[ScreenedBlock]:
    """Yield the blocks of a source, rows ascending; each overwrites the one before.

    Raises:
        NonFiniteError: a pre-activation is NaN or can overflow; a given score is NaN.
    """
    if isinstance(source, Encoder):
        yield from _of_encoder(source)
        return
    for first_row, pre in source.blocks():
        check_not_nan(first_row, pre)
        yield ScreenedBlock(first_row, pre)


def _of_encoder(encoder: Encoder) -> Iterator[ScreenedBlock]:
    x, W, b = encoder.x_centered, encoder.W_enc, encoder.b_enc
    if 0 in (len(x), len(W)):
        return
    row_norm, latent_norm = upward_norms(x), upward_norms(W)
    largest = row_norm.max() * latent_norm.max() + b.abs().max()
    if not bool(largest <= LARGEST_PRE_ACTIVATION):  # one wait for the device; NaN compares as False
        check_finite_factors(
            RowNorms(norm=row_norm, error=torch.zeros_like(row_norm)),
            RowNorms(norm=latent_norm, error=torch.zeros_like(latent_norm)),
            b,
        )
    slack = row_norm * (product_error(x.device, x.dtype, x.shape[1]) * (1 + 1e-5))  # for the arithmetic here
    with borrowed(min(encoder.rows_per_block, len(x)), len(W), dtype=x.dtype, device=x.device) as buffer:
        for first_row, score in encoder.blocks():
            error = torch.abs(score, out=buffer[: len(score)]).mul_(float(ROUNDING)).add_(float(FLOOR))
            error.addcmul_(slack[first_row : first_row + len(score), None], latent_norm)
            yield ScreenedBlock(first_row, score, error, encoder)


def upward_norms(rows: Tensor) -> Tensor:
    """The norms of ``rows`` [n, D], not below the true ones: [n]. They are not finite where a row is not."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    smallest = max(SMALLEST_NORM, torch.finfo(rows.dtype).tiny)
    return norms * (1 + (rows.shape[1] + 16) * 2.0**-23) + smallest


def product_error(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """κ of torch's matrix product as it is set now, for rows of ``width``.

    It is infinite for products that keep no known bound; all pre-activations are then computed one by one.
    """
    set_to = tuple(READING_ERRORS.get(name, inf) for name in _precisions())
    return _proven_error(device, dtype, width, max(set_to))


def _precisions() -> tuple[str, ...]:
    """How torch may read the numbers of float32 products, on NVIDIA GPUs and elsewhere."""
    elsewhere: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return torch.backends.cuda.matmul.fp32_precision, elsewhere


@cache
def _proven_error(device: torch.device, dtype: torch.dtype, width: int, set_to: float) -> float:
    """κ for the least ε, ``set_to`` or more, that a trial on the device shows to hold."""
    for reading in sorted({set_to, *READING_ERRORS.values()}):
        if (
            reading >= set_to
            and dtype in (torch.float32, torch.float64)
            and _holds(device, dtype, width, reading)
        ):
            return _of_product(width, reading) + gamma(width)
    return inf


def _of_product(width: int, reading: float) -> float:
    """The part of κ that bounds |q - x·w|."""
    return 2 * reading + reading**2 + gamma(4 * width) * (1 + reading) ** 2


def _holds(device: torch.device, dtype: torch.dtype, width: int, reading: float) -> bool:
    """Whether products on the device keep the bound of ``reading`` (ε), compared with float64.

    The rows are random, of one sign (whose sums show what is cut off), and of very different entries. Rows
    with a single entry show how the entries themselves are read, because nothing is added up.
    """
    generator = torch.Generator().manual_seed(0)

    def random(number: int) -> list[Tensor]:
        normal = torch.randn(number, width, generator=generator).to(dtype)
        powers = torch.randint(-12, 13, (number, width), generator=generator)
        return [normal, normal.abs(), normal * torch.exp2(powers.to(dtype))]

    single = torch.zeros(TRIAL_ROWS, width, dtype=dtype)
    row = torch.arange(TRIAL_ROWS)
    single[row, row % width] = torch.randn(TRIAL_ROWS, generator=generator).to(dtype)
    rows, latents = random(TRIAL_ROWS), random(TRIAL_LATENTS)
    limit = _of_product(width, reading)
    limit_of_single = 2 * reading + reading**2 + 2.0**-22
    for x, w, share in (
        (single, latents[0], limit_of_single),
        *((*two, limit) for two in zip(rows, latents, strict=True)),
    ):
        true = x.double() @ w.double().T
        lengths = true.abs() if x is single else x.double().norm(dim=1)[:, None] * w.double().norm(dim=1)
        on_device = x.to(device), w.to(device).T
        for some in (slice(None), slice(0, 1)):  # a row alone can take another way
            score = matmul(on_device[0][some], on_device[1]).cpu().double()
            if not bool(((score - true[some]).abs() <= share * lengths[some] + float(FLOOR)).all()):
                return False
    return True
