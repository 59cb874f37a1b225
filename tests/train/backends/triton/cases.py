"""Rows, encoders and codes that the tests of the kernels share."""

import torch
from torch import Tensor

from saecache.train.pairs import Pairs


def numbers(*shape: int, seed: int, whole: bool) -> Tensor:
    """Whole numbers, of which every float32 sum is exact in any order, or random ones."""
    generator = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-4, 5, shape, generator=generator).float()
    return torch.randn(*shape, generator=generator)


def factors(rows: int, latents: int, width: int, *, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, D] with a row of zeros (every latent ties but for its bias), W [F, D], b [F]."""
    x, W = numbers(rows, width, seed=1, whole=whole), numbers(latents, width, seed=2, whole=whole)
    x[rows // 2] = 0
    return x, W, numbers(latents, seed=3, whole=whole)


def codes(rows: int, latents: int, share: float, *, whole: bool) -> Pairs:
    """Latent 3 is chosen by all rows but row 5, which has no pairs; latent 7 by none."""
    chosen = torch.rand(rows, latents, generator=torch.Generator().manual_seed(4)) < share
    chosen[:, 3], chosen[:, 7], chosen[5] = True, False, False
    return Pairs.from_dense(torch.where(chosen, numbers(rows, latents, seed=5, whole=whole) + 0.5, 0.0))


def assert_close(got: Tensor, want: Tensor, *, whole: bool, relative: float = 1e-6) -> None:
    """The same bits if every sum is exact, else within ``relative`` of the largest number."""
    if whole:
        assert torch.equal(got, want.to(got.dtype))
    else:
        scale = want.double().abs().max().clamp_min(1e-30)
        assert float((got.double() - want.double()).abs().max() / scale) < relative
