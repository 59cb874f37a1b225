"""The CUDA backend: screened on tensor cores, decided by exact pre-activations; see the kernels beside this.

Scores that a variant makes itself (:class:`..sources.Scores`) are compared as they are: the largest of each
row by :mod:`.given`, for other rules in torch operations.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...pairs import Pairs
from ..plain import backend as plain
from ..protocol import AdamSettings
from ..sources import Encoder, Source
from . import above as kernels_above
from . import adam, gradients, largest, replay
from . import decode as kernels_decode
from . import largest_of_batch as kernels_batch
from .adam import clip, global_norm, gradient_norm, row_squares
from .decode import add_decoded, decode
from .exact import sddmm
from .gates import rank_gates
from .given import largest_per_row_of_scores
from .gradients import accumulate_by_latent
from .kept_rows import kept_rows, rows_to_refresh
from .nested import reconstruct_nested
from .random_numbers import random_uniform
from .row_sums import sum_rows
from .sums import count_active, sum_per_latent

__all__ = [
    "above",
    "accumulate_by_latent",
    "adam_step",
    "add_decoded",
    "clip",
    "count_active",
    "decode",
    "global_norm",
    "gradient_norm",
    "largest_of_batch",
    "largest_per_latent",
    "largest_per_row",
    "nests",
    "random_uniform",
    "rank_gates",
    "reconstruct",
    "reconstruct_nested",
    "row_squares",
    "sddmm",
    "sum_per_latent",
    "sum_rows",
    "weight_gradients",
]

nests = True
search_rows = None

_numbers: WeakKeyDictionary[AdamSettings, dict[int, Tensor]] = WeakKeyDictionary()  # by step, of each step


def largest_per_row(source: Source, k: int) -> Pairs:
    """As :meth:`..protocol.Backend.largest_per_row`."""
    if not isinstance(source, Encoder):
        return largest_per_row_of_scores(source, k)
    x, W, b = source.x_centered, source.W_enc, source.b_enc
    if replay.is_wanted(x.device):
        return replay.largest_per_row(x, W, b, k, kept_rows(W))
    return largest.largest_per_row(x, W, b, k, rounded_W=kept_rows(W))


def largest_of_batch(source: Source, total: int, hint: Tensor | None) -> tuple[Pairs, Tensor | None]:
    """As :meth:`..protocol.Backend.largest_of_batch`; chunk maxima give a threshold, so no guess is kept."""
    if not isinstance(source, Encoder):
        return plain.largest_of_batch(source, total, hint)
    x, W, b = source.x_centered, source.W_enc, source.b_enc
    return kernels_batch.largest_of_batch(x, W, b, total, rounded_W=kept_rows(W)), None


def largest_per_latent(source: Source, counts: Tensor) -> Pairs:
    """As :meth:`..protocol.Backend.largest_per_latent`."""
    if not isinstance(source, Encoder):
        return plain.largest_per_latent(source, counts)
    x, W, b = source.x_centered, source.W_enc, source.b_enc
    return largest.largest_per_latent(x, W, b, counts, rounded_W=kept_rows(W))


def above(source: Source, threshold: Tensor) -> Pairs:
    """As :meth:`..protocol.Backend.above`."""
    if not isinstance(source, Encoder):
        return plain.above(source, threshold)
    x, W, b = source.x_centered, source.W_enc, source.b_enc
    return kernels_above.above(x, W, b, threshold, rounded_W=kept_rows(W))


def reconstruct(codes: Pairs, W_dec: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """As :meth:`..protocol.Backend.reconstruct`."""
    error, d_value, squared = kernels_decode.reconstruct(codes, W_dec, target, scale)
    return error, d_value, squared.sum(dtype=torch.float64)


def weight_gradients(
    codes: Pairs,
    d_pre: Tensor,
    x_centered: Tensor,
    error: Tensor,
    scale: float,
    W_enc_grad: Tensor,
    W_dec_grad: Tensor,
) -> Tensor:
    """As :meth:`..protocol.Backend.weight_gradients`."""
    per_latent = torch.empty(codes.num_latents, device=error.device)
    gradients.weight_gradients(
        codes, d_pre, codes.value, x_centered, error, W_enc_grad, W_dec_grad, per_latent, add_bias=False,
        scale=scale,
    )  # fmt: skip
    return per_latent


def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    settings: AdamSettings,
    *,
    unit_rows: bool = False,
) -> None:
    """As :meth:`..protocol.Backend.adam_step`; what is kept of an encoder is refreshed in the same pass."""
    numbers = _numbers.setdefault(settings, {})
    if step not in numbers:
        numbers[step] = adam.adam_numbers(settings, step, parameter.device)
    adam.adam_step(
        parameter, gradient, exp_avg, exp_avg_sq, step, settings, unit_rows=unit_rows,
        numbers=numbers[step], refresh=rows_to_refresh(parameter),
    )  # fmt: skip
