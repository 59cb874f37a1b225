"""How well reconstructions match their rows: FVU, explained variance, mean squared error and cosine.

Legend: B rows of a block, D model width, G groups of documents, R draws of the bootstrap.
"""

import numpy as np
import torch
from torch import Tensor

from ...distributed.group import Group
from ..results import ReconstructionMetrics
from ..tree_sum import TreeSum
from .bootstrap import Floats, draw_weights, intervals_of, ratio

_ROWS, _ERROR, _SQUARES, _COSINE, _SUM = range(5)  # columns of the sums, which has D from the last one on


class ReconstructionStream:
    """FVU, mean squared error and mean cosine, from sums in float64 that are kept by group of documents.

    FVU = E|x - x̂|² / (E|x|² - |E x|²): the mean over rows that a constant x̂ would be compared with counts
    as error, as in SAELens' ``ExplainedVarianceCalculator``. Memory is G * D numbers for each time that the
    number of blocks doubles.
    """

    def __init__(
        self, num_groups: int = 1, *, first_block: int = 0, block_0_BD: Tensor | None = None
    ) -> None:
        """
        Args:
            first_block: the number of the first block that is added.
            block_0_BD: the rows of block 0, if that is another one. Sums are of x less the mean of block 0:
                a mean far above the spread then costs no digits.
        """
        self.num_groups = num_groups
        self._origin_D = None if block_0_BD is None else mean_row(block_0_BD)
        self._sums = TreeSum(first_block)

    def update(self, x_BD: Tensor, reconstruction_BD: Tensor, group_B: Tensor | None = None) -> None:
        """Add a block: ``x_BD`` and ``reconstruction_BD`` [B, D] in one space, any float dtype and device.

        Args:
            group_B: int64 [B], the group of each row; group 0 for all if None.

        Raises:
            ValueError: the two differ in shape.
        """
        if x_BD.shape != reconstruction_BD.shape:
            raise ValueError(f"x is {tuple(x_BD.shape)}, its reconstruction {tuple(reconstruction_BD.shape)}")
        if len(x_BD) == 0:
            return
        group_B = torch.zeros(len(x_BD), dtype=torch.int64) if group_B is None else group_B
        x, reconstruction = x_BD.cpu().double(), reconstruction_BD.cpu().double()  # MPS has no float64
        if self._origin_D is None:
            self._origin_D = mean_row(x)
        dots, norms = (x * reconstruction).sum(1), x.norm(dim=1) * reconstruction.norm(dim=1)
        cosine = torch.where(norms > 0, dots / norms.clamp_min(1e-300), 0.0)
        centered = x - self._origin_D
        error, squares = (reconstruction - x).square().sum(1), centered.square().sum(1)
        sums_GC = torch.zeros(self.num_groups, _SUM + x.shape[1], dtype=torch.float64)
        sums_GC[:, :_SUM].index_add_(
            0, group_B, torch.stack([torch.ones_like(error), error, squares, cosine], dim=1)
        )
        sums_GC[:, _SUM:].index_add_(0, group_B, centered)
        self._sums.add(sums_GC)

    def collect(self, group: Group, owner: int) -> None:
        """Bring the sums of all processes of ``group``, which share the rows, to process ``owner``."""
        self._sums.collect(group, owner)

    def result(self, seed: int = 0) -> ReconstructionMetrics:
        """The figures so far, with intervals if there are enough groups. FVU is None for constant rows.

        Raises:
            ValueError: no rows were added.
        """
        sums = self._sums.total()
        if sums is None:
            raise ValueError("no rows were measured")
        sums_GC = sums.numpy()
        figures = {
            name: float(value[0])
            for name, value in self._figures(sums_GC, np.ones((1, self.num_groups))).items()
        }
        weights = draw_weights(self.num_groups, seed)
        fvu = None if np.isnan(figures["fvu"]) else figures["fvu"]
        return ReconstructionMetrics(
            fvu=fvu,
            explained_variance=None if fvu is None else 1 - fvu,
            mse=figures["mse"],
            cosine=figures["cosine"],
            intervals={} if weights is None else intervals_of(self._figures(sums_GC, weights)),
        )

    def _figures(self, sums_GC: Floats, weights_RG: Floats) -> dict[str, Floats]:
        """The figures of each weighting of the groups, float64 [R] each."""
        rows, error = weights_RG @ sums_GC[:, _ROWS], weights_RG @ sums_GC[:, _ERROR]
        sum_RD = weights_RG @ sums_GC[:, _SUM:]
        variance = weights_RG @ sums_GC[:, _SQUARES] - np.square(sum_RD).sum(1) / rows
        return {
            "fvu": ratio(error, variance),
            "mse": error / (rows * sum_RD.shape[1]),
            "cosine": weights_RG @ sums_GC[:, _COSINE] / rows,
        }


def mean_row(x_BD: Tensor) -> Tensor:
    """The mean of rows of any float dtype and device: float64 [D], on the CPU."""
    return x_BD.cpu().double().mean(0)
