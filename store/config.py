"""How rows are stored: the settings of the writer."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class StorageConfig(BaseModel):
    """What is stored, in which pieces, and how much memory writing it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float16", "float32"] = Field(
        default="float16", description="number type of the stored rows"
    )
    normalization: Literal["unit", "none"] = Field(
        default="unit",
        description="what is stored: 'unit' is (x - mean) / norm of each row, 'none' the raw row; "
        "norm and mean are stored beside it either way, so each can be had from the other",
    )
    shard_bytes: int = Field(
        default=256 * MIB, ge=4 * KIB, le=64 * GIB, description="size of one shard file of rows, at most"
    )
    chunk_rows: int = Field(
        default=4096, ge=1, le=1 << 24, description="rows of one inner chunk: the unit of checksums"
    )
    memory_bytes: int = Field(
        default=GIB, ge=MIB, description="bound on the writer's buffers; does not change what is written"
    )

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return 2 if self.dtype == "float16" else 4
