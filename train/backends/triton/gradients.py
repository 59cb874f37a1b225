"""The gradients of weights: sums over the pairs of each latent, rows ascending, both matrices in one pass.

A segment of a long latent (:mod:`.transpose`) is added up by its own program into a row of scratch memory,
and the latent's program adds these rows up in their order.
"""

import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from .decode import decoded_row
from .launch import blocks, kernel, launch, padded, warps_of, whole_rows, written_whole
from .transpose import Segmented, by_latent

BLOCK = 1024  # pairs of a program that handles one number of each


@kernel
def _segments_kernel(
    segment_ptr, latent_ptr, row, coefficient, source, scratch, coefficient_2, source_2, scratch_2, F,
    BOTH: tl.constexpr, STEPS: tl.constexpr, SEGMENT: tl.constexpr, SHARE: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """One segment of a long latent, into row ``program_id`` of ``scratch``; with BOTH of two sums.

    SHARE consecutive rows of pairs share a row of the first ``source``.
    """
    s = tl.program_id(0)
    if s < tl.load(segment_ptr + F):
        low, high = s * 0, s * 0 + F  # segment_ptr[low] <= s < segment_ptr[high]
        for _ in range(STEPS):
            middle = (low + high) // 2
            before = tl.load(segment_ptr + middle) <= s
            inner = high - low > 1
            low = tl.where(inner & before, middle, low)
            high = tl.where(inner & ~before, middle, high)
        first = tl.load(latent_ptr + low) + (s - tl.load(segment_ptr + low)) * SEGMENT
        last = tl.minimum(first + SEGMENT, tl.load(latent_ptr + low + 1))
        column = tl.arange(0, DP)
        sums = tl.zeros((DP,), tl.float32)
        sums = decoded_row(sums, row, coefficient, source, first, last, D, DP, SHARE)
        tl.store(scratch + s.to(tl.int64) * D + column, sums, mask=column < D)
        if BOTH:
            sums = decoded_row(tl.zeros((DP,), tl.float32), row, coefficient_2, source_2, first, last, D, DP)
            tl.store(scratch_2 + s.to(tl.int64) * D + column, sums, mask=column < D)


@kernel
def _latent_row(
    f, segment_ptr, latent_ptr, row, coefficient, source, scratch, out,
    ADD: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, SHARE: tl.constexpr = 1,
):  # fmt: skip
    """out[f] (+)= the sum of one latent: of its pairs, or of its segments."""
    first, last = tl.load(latent_ptr + f), tl.load(latent_ptr + f + 1)
    segment, stop = tl.load(segment_ptr + f), tl.load(segment_ptr + f + 1)
    column = tl.arange(0, DP)
    inside = column < D
    if (not ADD) | (last > first):
        sums = tl.zeros((DP,), tl.float32)
        if stop > segment:
            part = scratch + segment * D
            for _ in range(segment, stop):
                sums += tl.load(part + column, mask=inside, other=0.0)
                part += D
        else:
            sums = decoded_row(sums, row, coefficient, source, first, last, D, DP, SHARE)
        place = out + f.to(tl.int64) * D + column
        if ADD:
            sums += tl.load(place, mask=inside, other=0.0)
        tl.store(place, sums, mask=inside)


@kernel
def _one_kernel(
    segment_ptr, latent_ptr, row, coefficient, source, scratch, out,
    ADD: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0)
    _latent_row(f, segment_ptr, latent_ptr, row, coefficient, source, scratch, out, ADD, D, DP)


@kernel
def _both_kernel(
    segment_ptr, latent_ptr, row, d_pre, d_dec, x, error,
    x_scratch, e_scratch, enc, dec, bias,
    ADD: tl.constexpr, ADD_BIAS: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0)
    _latent_row(f, segment_ptr, latent_ptr, row, d_pre, x, x_scratch, enc, ADD, D, DP, SHARE)
    _latent_row(f, segment_ptr, latent_ptr, row, d_dec, error, e_scratch, dec, ADD, D, DP)
    first, last = tl.load(latent_ptr + f), tl.load(latent_ptr + f + 1)
    lane = tl.arange(0, 128)
    sums = tl.zeros((128,), tl.float64)
    for start in range(first, last, 128):
        sums += tl.load(d_pre + start + lane, mask=start + lane < last, other=0.0).to(tl.float64)
    total = tl.sum(sums, axis=0).to(tl.float32)
    if ADD_BIAS:
        total += tl.load(bias + f)
    tl.store(bias + f, total)


@kernel
def _ordered_kernel(pair, first, second, scale, out_first, out_second, size, N: tl.constexpr):
    """The two coefficients of each pair in the order of the latents; the second one scaled."""
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = i < size
    p = tl.load(pair + i, mask=inside, other=0)
    tl.store(out_first + i, tl.load(first + p, mask=inside, other=0.0), mask=inside)
    tl.store(out_second + i, tl.load(second + p, mask=inside, other=0.0) * scale, mask=inside)


def _add_up_segments(order: Segmented, *sums: tuple[Tensor, Tensor], share: int = 1) -> list[Tensor]:
    """The scratch memory [segments, D] of one or two sums (coefficient, source), filled.

    ``share`` consecutive rows of pairs share a row of the first source.
    """
    num_latents, width = len(order.counts) - 1, sums[0][1].shape[1]
    scratches = [source.new_empty(max(order.most_segments, 1), width) for _, source in sums]
    each = [(*pair, scratch) for pair, scratch in zip(sums, scratches, strict=True)]
    launch(
        _segments_kernel, (order.most_segments,), order.segment_ptr, order.latent_ptr, order.row, *each[0],
        *each[-1], num_latents,
        BOTH=len(sums) > 1, STEPS=num_latents.bit_length(), SEGMENT=order.segment, SHARE=share, D=width,
        DP=padded(width), num_warps=warps_of(width),
    )  # fmt: skip
    return scratches


def accumulate_by_latent(
    pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor, *, add: bool = True
) -> None:
    """out[latent] += sum over the latent's pairs of coefficient * source[row], rows ascending.

    Args:
        pairs: [B, F]; their values are not looked at.
        coefficient: float32 [P]. source: float32 [B, D].
        out: float32 [F, D], added to, or with ``add=False`` written.
    """
    source = whole_rows("source", source)
    order = by_latent(pairs)
    scale = coefficient.index_select(0, order.pair)
    (scratch,) = _add_up_segments(order, (scale, source))
    width = source.shape[1]
    with written_whole("out", out, width) as whole:
        launch(
            _one_kernel, (pairs.num_latents,), order.segment_ptr, order.latent_ptr, order.row, scale, source,
            scratch, whole, ADD=add, D=width, DP=padded(width), num_warps=warps_of(width),
        )  # fmt: skip


def weight_gradients(
    pairs: Pairs,
    d_pre: Tensor,
    d_dec_coefficient: Tensor,
    x_centered: Tensor,
    error: Tensor,
    W_enc_grad: Tensor,
    W_dec_grad: Tensor,
    b_enc_grad: Tensor,
    *,
    add: bool = True,
    add_bias: bool | None = None,
    scale: float = 1.0,
) -> None:
    """The gradients of both matrices and of the encoder's bias, in one pass over the latents.

    W_enc_grad[latent] += sum d_pre * x_centered[row],
    W_dec_grad[latent] += sum scale * d_dec_coefficient * error[row],
    b_enc_grad[latent] += sum d_pre (in float64). ``add=False`` writes them, zeros for latents without pairs;
    ``add_bias`` says it for b_enc_grad, if it differs.

    Args:
        pairs: [B, F], or [G * B, F] with G rows, one after the other, for each row of ``x_centered``.
        d_pre, d_dec_coefficient: float32 [P]. x_centered: float32 [B, D]. error: float32, a row for each of
            the pairs' rows.
        W_enc_grad, W_dec_grad: float32 [F, D]. b_enc_grad: float32 [F].
    """
    width = x_centered.shape[1]
    x_centered, error = whole_rows("x_centered", x_centered), whole_rows("error", error, width)
    share = pairs.num_rows // max(len(x_centered), 1)
    order = by_latent(pairs)
    g, c = error.new_empty(len(pairs)), error.new_empty(len(pairs))
    launch(
        _ordered_kernel, (blocks(len(pairs), BLOCK),), order.pair, d_pre.contiguous(),
        d_dec_coefficient.contiguous(), scale, g, c, len(pairs), N=BLOCK,
    )  # fmt: skip
    x_scratch, e_scratch = _add_up_segments(order, (g, x_centered), (c, error), share=share)
    with (
        written_whole("W_enc_grad", W_enc_grad, width) as enc,
        written_whole("W_dec_grad", W_dec_grad, width) as dec,
        written_whole("b_enc_grad", b_enc_grad[None]) as bias,
    ):
        launch(
            _both_kernel, (pairs.num_latents,), order.segment_ptr, order.latent_ptr, order.row, g, c,
            x_centered, error, x_scratch, e_scratch, enc, dec, bias, ADD=add,
            ADD_BIAS=add if add_bias is None else add_bias, SHARE=share, D=width, DP=padded(width),
            num_warps=warps_of(width),
        )  # fmt: skip
