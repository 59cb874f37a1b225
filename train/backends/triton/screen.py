"""The screening product: bfloat16 scores of all pairs, and the largest upper bound of every chunk of a row.

An upper bound q + b + error is never below the pre-activation it stands for (:mod:`.rounding`). The largest
one of every chunk of columns is found while the scores are still in float32, in registers; a later scan looks
only at the chunks that can hold a pair that is looked for. The product is symmetric: with latents as its rows
and rows of the batch as its columns it finds the largest rows of every latent.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from ..bounds import FLOOR, RELATIVE, ROUNDING
from .launch import blocks, kernel, launch, padded
from .rounding import ScreenRows, round_batch, round_latents, to_bfloat16

GROUP = 8  # blocks of rows that take turns on the same columns, so that both stay in the L2 cache
SMALLEST_CHUNK, LARGEST_CHUNK = 8, 64
CHUNKS_PER_WANTED = 4  # chunks of a row for each pair that is looked for, or the threshold would be loose
_FLOOR, _ROUNDING = tl.constexpr(float(FLOOR)), tl.constexpr(float(ROUNDING))
_RELATIVE = tl.constexpr(RELATIVE["bfloat16"])


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Scores of M rows and N columns.

    Attributes:
        scores: bfloat16 [M, N], without the bias.
        tops: float32 [M, ceil(N / chunk)]: the largest upper bound of every chunk of columns.
        rows, columns: their factors.
        bias: float32 [N], or [M] with ``bias_of_rows``.
    """

    scores: Tensor
    tops: Tensor
    rows: ScreenRows
    columns: ScreenRows
    bias: Tensor
    bias_of_rows: bool
    chunk: int


@kernel
def upper_bound(score, bias, error):
    """Never below the pre-activation whose product is within ``error`` of ``score``."""
    q = score + bias
    return q + (error + (_ROUNDING * tl.abs(q) + _FLOOR))


@kernel
def upper_bound_of_stored(score, bias, error):
    """The same for a score that was rounded to a bfloat16."""
    return upper_bound(score, bias, error + _RELATIVE * tl.abs(score))


@kernel
def lower_bound_of_top(top, error):
    """Not above the pre-activation of the pair whose upper bound is ``top``; ``error`` is the chunk's
    largest.
    """
    return top - (2.001 * error + (4 * _ROUNDING * tl.abs(top) + 4 * _FLOOR))


@kernel
def _screen_kernel(
    x, W, row_factor, column_factor, bias, scores, tops, M, N, C,
    D: tl.constexpr, BIAS_OF_ROWS: tl.constexpr, CHUNK: tl.constexpr, INTERPRETED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    in_group = GROUP * tl.cdiv(N, BN)
    group = tl.program_id(0) // in_group
    group_rows = tl.minimum(tl.cdiv(M, BM) - group * GROUP, GROUP)
    block_m = group * GROUP + (tl.program_id(0) % in_group) % group_rows
    block_n = (tl.program_id(0) % in_group) // group_rows
    m, n = block_m * BM + tl.arange(0, BM), block_n * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    a = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * D + k[None, :]  # rows past the end repeat the last
    w = W + tl.minimum(n, N - 1).to(tl.int64)[None, :] * D + k[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, D, BK):
        if D % BK == 0:
            left, right = tl.load(a), tl.load(w)
        else:
            left = tl.load(a, mask=k[None, :] < D - start, other=0.0)
            right = tl.load(w, mask=k[:, None] < D - start, other=0.0)
        if INTERPRETED:  # Triton's interpreter would multiply the bits of bfloat16 numbers
            left, right = left.to(tl.float32), right.to(tl.float32)
        acc = tl.dot(left, right, acc)
        a += BK
        w += BK
    inside = (m < M)[:, None] & (n < N)[None, :]
    rounded = to_bfloat16(acc) if INTERPRETED else acc.to(tl.bfloat16)
    tl.store(scores + m.to(tl.int64)[:, None] * N + n[None, :], rounded, mask=inside)
    error = tl.load(row_factor + m, mask=m < M, other=0.0)[:, None]
    error = error * tl.load(column_factor + n, mask=n < N, other=0.0)[None, :]
    if BIAS_OF_ROWS:
        b = tl.load(bias + m, mask=m < M, other=0.0)[:, None]
    else:
        b = tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    upper = tl.where((n < N)[None, :], upper_bound(acc, b, error), float("-inf"))
    top = tl.max(tl.reshape(upper, (BM, BN // CHUNK, CHUNK)), axis=2)
    c = block_n * (BN // CHUNK) + tl.arange(0, BN // CHUNK)
    tl.store(tops + m.to(tl.int64)[:, None] * C + c[None, :], top, mask=(m < M)[:, None] & (c < C)[None, :])


def chunk_for(num_columns: int, wanted_of_row: float) -> int:
    """Columns of a chunk, when about ``wanted_of_row`` pairs of each row are looked for."""
    chunk = LARGEST_CHUNK
    while chunk > SMALLEST_CHUNK and CHUNKS_PER_WANTED * wanted_of_row * chunk > num_columns:
        chunk //= 2
    return chunk


def product_options(device: torch.device) -> dict[str, int]:
    """Sizes of the product's blocks: what fits in the shared memory of the device."""
    if device.type != "cuda":
        return {"BM": 32, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 2}
    major, minor = torch.cuda.get_device_capability(device)
    return options_of(10 * major + minor)


def options_of(capability: int) -> dict[str, int]:
    """The same for a compute capability, 80 for 8.0."""
    if 90 <= capability < 100:  # Hopper
        return {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3}
    if 100 <= capability < 120:  # Blackwell in data centres: the larger block's registers would spill there
        return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4}
    # Ampere, Ada and the Blackwell of graphics cards, which have 99 KiB of shared memory
    return {"BM": 128, "BN": 128, "BK": 32, "num_warps": 8, "num_stages": 4}


def screen(
    rows: ScreenRows,
    columns: ScreenRows,
    bias: Tensor,
    *,
    chunk: int = LARGEST_CHUNK,
    bias_of_rows: bool = False,
) -> Screen:
    """Scores of all rows (M) and columns (N); ``bias`` float32 [N], or [M] with ``bias_of_rows``."""
    num_rows, width = rows.rounded.shape
    num_columns = len(columns.rounded)
    if columns.rounded.shape[1] != width:
        raise ValueError(f"rows and columns must be equally wide, got {width} and {columns.rounded.shape[1]}")
    num_chunks = blocks(num_columns, chunk)
    device = rows.rounded.device
    scores = torch.empty(num_rows, num_columns, dtype=torch.bfloat16, device=device)
    tops = torch.empty(num_rows, num_chunks, device=device)
    options = product_options(device)
    options["BK"] = min(options["BK"], padded(width))
    launch(
        _screen_kernel, (blocks(num_rows, options["BM"]) * blocks(num_columns, options["BN"]),),
        rows.rounded, columns.rounded, rows.factor, columns.factor, bias, scores, tops,
        num_rows, num_columns, num_chunks,
        D=width, BIAS_OF_ROWS=bias_of_rows, CHUNK=chunk, INTERPRETED=device.type != "cuda", GROUP=GROUP,
        **options,
    )  # fmt: skip
    return Screen(
        scores=scores,
        tops=tops,
        rows=rows,
        columns=columns,
        bias=bias,
        bias_of_rows=bias_of_rows,
        chunk=chunk,
    )


TRIAL_ROWS, TRIAL_LATENTS = 256, 1024


@cache
def keeps_bounds(device: torch.device, width: int) -> bool:
    """Whether the device's tensor cores keep the bounds of :mod:`.rounding`: once for each width, in float64.

    On random rows, on rows of one sign (whose sums show what is cut off), and on rows whose entries differ by
    many powers of two.
    """
    sizes = (TRIAL_ROWS, TRIAL_LATENTS) if device.type == "cuda" else (32, 64)
    generator = torch.Generator().manual_seed(0)

    def random(number: int) -> list[Tensor]:
        normal = torch.randn(number, width, generator=generator)
        powers = torch.randint(-12, 13, (number, width), generator=generator)
        return [normal, normal.abs(), normal * torch.exp2(powers.float())]

    for x, w in zip(random(sizes[0]), random(sizes[1]), strict=True):
        bias = torch.randn(sizes[1], generator=generator)
        if not _keeps(x.to(device), w.to(device), bias.to(device)):
            return False
    return True


def _keeps(x: Tensor, w: Tensor, bias: Tensor) -> bool:
    found = screen(round_batch(x), round_latents(w), bias)
    true = x.double() @ w.double().T
    score = found.scores.double()
    error = found.rows.factor.double()[:, None] * found.columns.factor.double()
    near = (score - true).abs() <= error + RELATIVE["bfloat16"] * score.abs() + float(FLOOR)
    size = (len(x), -1, found.chunk)
    short = -len(w) % found.chunk
    highest = torch.nn.functional.pad(true + bias, (0, short), value=-torch.inf).view(size).amax(2)
    possible = (
        torch.nn.functional.pad(true + bias + 2.01 * error, (0, short), value=-torch.inf).view(size).amax(2)
    )
    above = found.tops.double() >= highest
    near_tops = found.tops.double() <= possible + 1e-5 * possible.abs()
    return bool((near.all() & above.all() & near_tops.all()).item())
