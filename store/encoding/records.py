"""Records: one row of one hook while it waits for the shuffle, the stored row with its norm and mean."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layout import ZARR_DTYPE

_TAIL_BYTES = 8  # norm float32, mean float32


@dataclass(frozen=True)
class RecordLayout:
    """Bytes of a record: D numbers of the stored type, zeros up to a multiple of 8, norm float32, mean
    float32. With int8, four zeros and the scale float32 stand before norm and mean.
    """

    d_model: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return self.d_model * self.word.itemsize

    @property
    def has_scale(self) -> bool:
        return self.dtype == "int8"

    @property
    def record_bytes(self) -> int:
        return -(-self.row_bytes // 8) * 8 + _TAIL_BYTES * (2 if self.has_scale else 1)

    @property
    def word(self) -> np.dtype[Any]:
        """Unsigned integers as wide as the stored numbers: kernels move bits, not floats."""
        return np.dtype(f"<u{np.dtype(ZARR_DTYPE[self.dtype]).itemsize}")

    def words(self, records: NDArray[np.uint8]) -> NDArray[Any]:
        """Records uint8 [n, record_bytes] as words [n, W], the stored row in the first D of each; a view."""
        return records.view(self.word)

    def scale(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n], of int8 rows; a view."""
        return records[:, -12:-8].view(np.float32)[:, 0]

    def norm(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n]; a view."""
        return records[:, -8:-4].view(np.float32)[:, 0]

    def mean(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n]; a view."""
        return records[:, -4:].view(np.float32)[:, 0]
