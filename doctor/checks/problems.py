"""Small fixed problems for the operations of a backend, and how results are compared.

With whole numbers every float32 sum is exact in any order, so that results must be equal bit for bit, and
many pre-activations tie. With random numbers they must be near.

Legend: B rows, D model width, F latents, P pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...train.backends.protocol import Backend
from ...train.pairs import Pairs
from ...train.selection import reference

NEAR = 1e-5  # of the largest number of a result


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows, an encoder, a decoder: float32 on the device.

    Attributes:
        x: [B, D]; one row is zero, where all latents tie but for their bias.
        W, W_dec: [F, D]. b: [F].
        k: latents to select in each row.
        whole: all numbers are small whole numbers.
        backend: the name of the backend that is checked on it.
    """

    x: Tensor
    W: Tensor
    W_dec: Tensor
    b: Tensor
    k: int
    whole: bool
    backend: str

    @property
    def label(self) -> str:
        size = f"{len(self.x)} x {len(self.W)} x {self.W.shape[1]}"
        return f"{self.backend}: {size}, {'whole numbers' if self.whole else 'random'}"

    @property
    def device(self) -> torch.device:
        return self.x.device

    def numbers(self, *shape: int, seed: int) -> Tensor:
        """More numbers of the problem's kind, the same on every device."""
        return numbers(*shape, seed=seed, whole=self.whole).to(self.device)


def make_problem(
    rows: int, latents: int, width: int, k: int, *, whole: bool, device: torch.device, backend: str
) -> Problem:
    """The problem of this size; it is drawn on the CPU, so that it is the same on every device."""
    x, W, W_dec = (
        numbers(count, width, seed=seed, whole=whole)
        for seed, count in enumerate((rows, latents, latents), start=1)
    )
    if rows > 1:
        x[rows // 2] = 0
    W[7 % latents] = 3 * x[0]
    b = numbers(latents, seed=4, whole=whole)
    x, W, W_dec, b = (tensor.to(device) for tensor in (x, W, W_dec, b))
    return Problem(x=x, W=W, W_dec=W_dec, b=b, k=k, whole=whole, backend=backend)


def numbers(*shape: int, seed: int, whole: bool) -> Tensor:
    """Whole numbers from -4 to 4, or normal ones; float32, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-4, 5, shape, generator=generator).float()
    return torch.randn(*shape, generator=generator)


def every_pair(rows: int, latents: int, device: torch.device) -> Pairs:
    """All pairs [B, F]."""
    return Pairs.from_dense(torch.ones(rows, latents, device=device))


def defined_pre_activations(backend: Backend, problem: Problem) -> Tensor:
    """What selections compare, by definition: sddmm of every pair, plus the bias: float32 [B, F]."""
    every = every_pair(len(problem.x), len(problem.W), problem.device)
    dots = backend.sddmm(every, problem.x, problem.W)
    return (dots + problem.b[every.latent]).view(len(problem.x), len(problem.W))


def make_codes(problem: Problem, pre: Tensor) -> Pairs:
    """Codes [B, F]: the k largest of each row, a latent that all rows choose, and a row without any."""
    chosen = reference.per_row(pre.cpu(), problem.k)
    chosen[:, 5] = True
    chosen[1:2] = False
    value = torch.where(pre.cpu() == 0, 1.0, pre.cpu())
    return Pairs.from_dense(torch.where(chosen, value, 0.0).to(problem.device))


def compare(got: Tensor, want: Tensor, *, whole: bool = False) -> tuple[bool, str]:
    """Whether ``got`` is ``want`` (in float64), and what is to be said about it.

    Whole numbers must be equal, others within :data:`NEAR` of the largest.
    """
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if got.shape != want.shape:
        return False, f"expected the shape {tuple(want.shape)}, got {tuple(got.shape)}"
    if whole:
        different = int((got != want).sum())
        return different == 0, f"{different:,} of {want.numel():,} numbers differ" if different else ""
    scale = want.abs().amax().clamp_min(1e-30) if want.numel() else torch.ones(())
    error = float((got - want).abs().amax() / scale) if want.numel() else 0.0
    return error <= NEAR, f"relative error {error:.1e}, expected at most {NEAR:g}"


def same_bits(*pairs: tuple[Tensor, Tensor]) -> bool:
    """Whether both tensors of every pair are equal, bit for bit."""
    return all(torch.equal(a, b) for a, b in pairs)


def compare_selection(pairs: Pairs, mask: Tensor, pre: Tensor) -> tuple[bool, str]:
    """Whether ``pairs`` are the places of ``mask`` (bool [B, F]) with the values of ``pre`` [B, F]."""
    pre, mask = pre.cpu(), mask.cpu()
    rows, latents = mask.nonzero(as_tuple=True)
    if not same_bits((pairs.row_ptr.cpu().diff(), mask.sum(1))) or not torch.equal(
        pairs.latent.cpu(), latents
    ):
        got = torch.zeros_like(mask)
        got[pairs.rows().cpu(), pairs.latent.cpu()] = True
        return False, f"{int((got != mask).sum()):,} places differ from the {len(rows):,} of the definition"
    wrong = int((pairs.value.cpu() != pre[rows, latents]).sum())
    return wrong == 0, f"{wrong:,} of {len(rows):,} values are not those of sddmm" if wrong else ""
