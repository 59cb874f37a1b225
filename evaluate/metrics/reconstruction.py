"""How well reconstructions match their rows: FVU, explained variance, mean squared error and cosine.

Legend: B rows of a block, D model width, G groups of documents, R draws of the bootstrap.
"""

import numpy as np
import torch
from torch import Tensor

from ..results import ReconstructionMetrics
from .bootstrap import Floats, draw_weights, intervals_of, ratio, sum_by_group


class ReconstructionStream:
    """FVU, mean squared error and mean cosine, from sums in float64 that are kept by group of documents.

    FVU = E|x - x̂|² / (E|x|² - |E x|²): the mean over rows that a constant x̂ would be compared with counts
    as error, as in SAELens' ``ExplainedVarianceCalculator``. Memory is G * D numbers, whatever the number of
    rows.
    """

    def __init__(self, num_groups: int = 1) -> None:
        self.num_groups = num_groups
        self._rows, self._error, self._squares, self._cosine = (np.zeros(num_groups) for _ in range(4))
        self._sum_GD: Tensor | None = None
        self._origin_D: Tensor | None = None  # near the mean: a mean far above the spread costs no digits

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
        if self._origin_D is None or self._sum_GD is None:
            self._origin_D = x.mean(0)
            self._sum_GD = torch.zeros(self.num_groups, x.shape[1], dtype=torch.float64)
        dots, norms = (x * reconstruction).sum(1), x.norm(dim=1) * reconstruction.norm(dim=1)
        cosine = torch.where(norms > 0, dots / norms.clamp_min(1e-300), 0.0)
        centered = x - self._origin_D
        self._sum_GD.index_add_(0, group_B, centered)
        group = group_B.numpy()
        self._rows += sum_by_group(group, None, self.num_groups)
        self._error += sum_by_group(group, (reconstruction - x).square().sum(1).numpy(), self.num_groups)
        self._squares += sum_by_group(group, centered.square().sum(1).numpy(), self.num_groups)
        self._cosine += sum_by_group(group, cosine.numpy(), self.num_groups)

    def result(self, seed: int = 0) -> ReconstructionMetrics:
        """The figures so far, with intervals if there are enough groups. FVU is None for constant rows.

        Raises:
            ValueError: no rows were added.
        """
        if self._rows.sum() == 0:
            raise ValueError("no rows were measured")
        figures = {
            name: float(value[0]) for name, value in self._figures(np.ones((1, self.num_groups))).items()
        }
        weights = draw_weights(self.num_groups, seed)
        fvu = None if np.isnan(figures["fvu"]) else figures["fvu"]
        return ReconstructionMetrics(
            fvu=fvu,
            explained_variance=None if fvu is None else 1 - fvu,
            mse=figures["mse"],
            cosine=figures["cosine"],
            intervals={} if weights is None else intervals_of(self._figures(weights)),
        )

    def _figures(self, weights_RG: Floats) -> dict[str, Floats]:
        """The figures of each weighting of the groups, float64 [R] each."""
        assert self._sum_GD is not None
        rows, error = weights_RG @ self._rows, weights_RG @ self._error
        variance = weights_RG @ self._squares - np.square(weights_RG @ self._sum_GD.numpy()).sum(1) / rows
        return {
            "fvu": ratio(error, variance),
            "mse": error / (rows * self._sum_GD.shape[1]),
            "cosine": weights_RG @ self._cosine / rows,
        }
