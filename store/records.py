"""One row of one hook while it waits for the shuffle: the stored row, then its norm and mean."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TAIL_BYTES = 8  # norm float32, mean float32


@dataclass(frozen=True)
class RecordLayout:
    """Bytes of a record: D numbers of the stored type, zeros up to a multiple of 8, norm float32, mean
    float32.
    """

    d_model: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return self.d_model * np.dtype(self.dtype).itemsize

    @property
    def record_bytes(self) -> int:
        return -(-self.row_bytes // 8) * 8 + _TAIL_BYTES

    @property
    def word(self) -> np.dtype[Any]:
        """Unsigned integers as wide as the stored numbers: kernels move bits, not floats."""
        return np.dtype("<u2") if np.dtype(self.dtype).itemsize == 2 else np.dtype("<u4")

    def words(self, records: NDArray[np.uint8]) -> NDArray[Any]:
        """Records uint8 [n, record_bytes] as words [n, W], the stored row in the first D of each; a view."""
        return records.view(self.word)

    def norm(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n]; a view."""
        return records[:, -8:-4].view(np.float32)[:, 0]

    def mean(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n]; a view."""
        return records[:, -4:].view(np.float32)[:, 0]
