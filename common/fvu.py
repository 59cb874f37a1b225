"""The fraction of variance unexplained (FVU) of rows that stream by, added up in float64.

FVU = sum over rows of |x̂ - x|² / sum over rows of |x - mean of the rows|². 0 is perfect, 1 is
as bad as answering every row with the mean row.

Legend: B rows of a block, D width.
"""

import torch
from torch import Tensor

SUM_PART = 16384  # rows whose squares are summed at once: below what torch splits over threads


class RowVariance:
    """The sum over rows of |x - mean of the rows|², from rows that come in blocks.

    Attributes:
        rows, sum, squares: int64 [], float64 [D] and float64 []: number, sum and squares of x - origin. They
            are the live state, to be copied into, and to be zeroed.
    """

    def __init__(
        self, d_model: int, device: torch.device | str = "cpu", origin: Tensor | float = 0.0
    ) -> None:
        """
        Args:
            origin: [D], best near the mean: a mean far larger than the spread then costs no digits.
        """
        self.origin = origin
        self.rows = torch.zeros((), dtype=torch.int64, device=device)
        self.sum = torch.zeros(d_model, dtype=torch.float64, device=device)
        self.squares = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x_BD: Tensor) -> None:
        """Take in a block of rows, of any float dtype, on the device of the sums."""
        if isinstance(self.origin, Tensor) or self.origin:
            x_BD = x_BD - self.origin
        self.rows += x_BD.shape[0]
        self.sum += x_BD.sum(0, dtype=torch.float64)
        self.squares += sum_of_squares(x_BD)

    def total(self) -> float:
        """The sum of squares about the mean of all rows so far."""
        return float(self.squares - self.sum.square().sum() / self.rows)

    def tensors(self) -> dict[str, Tensor]:
        """The live state by name."""
        return {"rows": self.rows, "sum": self.sum, "squares": self.squares}


class FVU:
    """The FVU of blocks of rows and their reconstructions; the arithmetic is float64 throughout."""

    def __init__(self) -> None:
        self.squared_error = 0.0
        self.variance: RowVariance | None = None

    def add(self, x_BD: Tensor, reconstruction_BD: Tensor) -> None:
        """Take in ``x_BD`` and ``reconstruction_BD`` [B, D], of any float dtype and on any device.

        Raises:
            ValueError: they differ in shape.
        """
        if x_BD.shape != reconstruction_BD.shape:
            raise ValueError(f"x is {tuple(x_BD.shape)}, its reconstruction {tuple(reconstruction_BD.shape)}")
        if x_BD.shape[0] == 0:
            return
        x, reconstruction = x_BD.cpu().double(), reconstruction_BD.cpu().double()  # MPS has no float64
        if self.variance is None:
            self.variance = RowVariance(x.shape[1], origin=x.mean(0))
        self.variance.add(x)
        self.squared_error += float(sum_of_squares(reconstruction - x))

    @property
    def num_rows(self) -> int:
        return 0 if self.variance is None else int(self.variance.rows)

    def value(self) -> float | None:
        """The FVU so far; None of no rows, and of rows that do not vary."""
        return None if self.variance is None else fvu(self.squared_error, self.variance.total())


def fvu(squared_error: float, variance: float) -> float | None:
    """``squared_error`` / ``variance``, both sums over the same rows; None where the rows do not vary."""
    return squared_error / variance if variance > 0 else None


def sum_of_squares(x_BD: Tensor) -> Tensor:
    """The sum of the squares of ``x_BD`` [..., B, D], float64 [...], whatever the number of threads."""
    norms = torch.linalg.vector_norm(x_BD, dim=-1).double().square()
    return torch.stack([part.sum(-1) for part in torch.split(norms, SUM_PART, dim=-1)]).sum(0)
