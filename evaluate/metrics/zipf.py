"""How closely the densities of latents follow Zipf's law, and which latents are dying by that law.

"Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", sections 3.2 and 4.3:
the density of the latent of rank i is scale / (i + beta)^alpha. The paper reports an R² without saying
whether densities or their logarithms were fitted, so both fits are made, each with the R² of its own space.
Legend: F latents, A alive ones, i rank by density, from 1.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from ...train.variants.losses.aux_zipf import dying_latents
from ..results import ZipfFit, ZipfLaw
from .bootstrap import Floats

MIN_ALIVE = 10  # a law of three parameters says nothing about fewer densities
_GRID = 48  # values of beta at which the search begins
_LARGEST = 600.0  # of the logarithm of the scale: e^709 is the largest float64


def fit_zipf(density_F: Tensor) -> ZipfLaw | None:
    """Fit Zipf's law to the densities above 0, in the space of logarithms and in that of densities.

    Args:
        density_F: share of rows on which each latent fires, [F], in any order.

    Returns:
        None if fewer than :data:`MIN_ALIVE` latents are alive, or all are equally dense.
    """
    density_A = np.sort(density_F[density_F > 0].double().numpy())[::-1]
    if len(density_A) < MIN_ALIVE or density_A[0] == density_A[-1]:
        return None
    log = _fit_logarithms(density_A)
    return ZipfLaw(log=log, linear=_fit_densities(density_A, log), num_alive=len(density_A))


def expected_density(fit: ZipfFit, num_latents: int) -> Floats:
    """The density that the law expects at ranks 1 to F: float64 [F]."""
    rank = np.arange(1, num_latents + 1, dtype=np.float64)
    return np.multiply(fit.scale, np.power(rank + fit.beta, -fit.alpha))


def find_dying(density_F: Tensor, law: ZipfLaw | None) -> Tensor:
    """The dying latents by Definition 3.1 of the paper, dead ones included: int64 [n], ascending.

    They are the least dense latents, in the last quarter of the ranks, all below 60 % of the density that the
    law, fitted to logarithms, expects at their rank. Without a law there are none.
    """
    if law is None:
        return torch.zeros(0, dtype=torch.int64)
    expected = torch.from_numpy(expected_density(law.log, len(density_F)))
    return dying_latents(density_F.double(), expected)


def _fit_logarithms(density_A: Floats) -> ZipfFit:
    """Least squares of log density = log scale - alpha log(i + beta): a line for each beta, the best beta by
    search.
    """
    rank, y = np.arange(1, len(density_A) + 1), np.log(density_A)
    y_centered = y - y.mean()
    total = float(y_centered @ y_centered)

    def line(log_beta: float) -> tuple[float, float, float]:
        """Squared error, slope, and mean of log(i + beta), for beta = e^log_beta - 1.

        Where the scale would be too large for a number, the error is larger than that of any line: densities
        that fall as an exponential are fitted ever better as alpha and beta grow.
        """
        x = np.log(rank + np.expm1(log_beta))
        x_centered = x - x.mean()
        slope = float(x_centered @ y_centered / (x_centered @ x_centered))
        mean = float(x.mean())
        error = total - slope * float(x_centered @ y_centered)
        return error if y.mean() - slope * mean < _LARGEST else 2 * total, slope, mean

    grid = np.linspace(0, np.log1p(10 * len(density_A)), _GRID)
    best = int(np.argmin([line(value)[0] for value in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    log_beta = minimize_scalar(
        lambda t: line(t)[0], bounds=bounds, method="bounded", options={"xatol": 1e-9}
    ).x
    log_beta = min(log_beta, grid[best], key=lambda t: line(float(t))[0])
    error, slope, mean = line(float(log_beta))
    return ZipfFit(
        alpha=-slope,
        beta=float(np.expm1(log_beta)),
        scale=float(np.exp(y.mean() - slope * mean)),
        r2=1 - error / total,
    )


def _fit_densities(density_A: Floats, start: ZipfFit) -> ZipfFit:
    """Least squares of density = scale / (i + beta)^alpha; the scale follows from alpha and beta."""
    rank = np.arange(1, len(density_A) + 1)

    def scale_of(weight: Floats) -> float:
        return float(weight @ density_A / (weight @ weight))

    def weights(parameters: NDArray[np.float64]) -> Floats:
        alpha, log_beta = np.clip(parameters, [0, 0], [20, 40])
        beta = np.expm1(log_beta)
        law: Floats = ((rank + beta) / (1 + beta)) ** -alpha  # 1 at rank 1: no underflow where alpha is large
        return law

    def error(parameters: NDArray[np.float64]) -> float:
        alpha, log_beta = np.clip(parameters, [0, 0], [20, 40])
        if alpha * log_beta > _LARGEST:
            return _LARGEST
        weight = weights(parameters)
        return float(np.square(density_A - scale_of(weight) * weight).sum() / np.square(density_A).sum())

    options = {"xatol": 1e-7, "fatol": 1e-14, "maxiter": 600}
    starts = ([start.alpha, np.log1p(start.beta)], [1.0, np.log1p(6.8)])
    found = min(
        (minimize(error, s, method="Nelder-Mead", options=options) for s in starts), key=lambda f: f.fun
    )
    alpha, log_beta = np.clip(found.x, [0, 0], [20, 40])
    weight = weights(found.x)
    scale = scale_of(weight)
    residual = float(np.square(density_A - scale * weight).sum())
    return ZipfFit(
        alpha=float(alpha),
        beta=float(np.expm1(log_beta)),
        scale=float(scale * np.exp(log_beta * alpha)),
        r2=1 - residual / float(np.square(density_A - density_A.mean()).sum()),
    )
