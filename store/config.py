"""How rows are stored: the settings of the writer."""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..common.validation import Settings
from .encoding.codecs import Codec
from .layout import ZARR_DTYPE, StoredDtype

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class StorageConfig(Settings):
    """How the rows of a cache are stored, and how much memory the writer may use."""

    dtype: StoredDtype = Field(
        default="float16",
        description="number type of the stored rows; int8 has a scale for each row, its largest value / 127",
    )
    normalization: Literal["unit", "none"] = Field(
        default="unit",
        description="what is stored: 'unit' is (x - mean) / norm of each row, 'none' the raw row; "
        "norm and mean are stored beside it, so that either form follows from the other",
    )
    shard_bytes: int = Field(
        default=256 * MIB, ge=4 * KIB, le=64 * GIB, description="largest size of one shard file of rows"
    )
    chunk_rows: int = Field(
        default=4096, ge=1, le=1 << 24, description="rows of one inner chunk, which has its own checksum"
    )
    memory_bytes: int = Field(
        default=GIB,
        ge=MIB,
        description="bound on the writer's buffers; the written bytes do not depend on it",
    )

    codec: Codec | None = Field(
        default=None,
        description="compression of the rows: zstd or blosc, with their settings; None maps them into memory",
    )

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return np.dtype(ZARR_DTYPE[self.dtype]).itemsize

    def with_memory_bytes(self, memory_bytes: int | None) -> "StorageConfig":
        """A copy with another bound on memory; None keeps the bound."""
        if memory_bytes is None:
            return self
        return StorageConfig.model_validate({**dict(self), "memory_bytes": memory_bytes})

    def identity(self) -> dict[str, Any]:
        """The settings that decide the bytes of a cache.

        Settings that came later are left out at their default, so that former fingerprints stay the same.
        """
        left_out = {"memory_bytes"} | ({"codec"} if self.codec is None else set())
        return self.model_dump(mode="json", exclude=left_out)
