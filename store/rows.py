"""Raw activations of one hook -> the records that are spilled, with the checks that stop a bad harvest."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import UsageError
from .spill import RecordLayout


def as_float32(activations: Any, expected_rows: int, d_model: int, hook: str) -> torch.Tensor:
    """Activations given by a caller (torch or numpy, any float type, any device) as float32 [n, D] on the CPU.

    Raises:
        UsageError: wrong shape or type.
    """
    tensor = (
        activations if isinstance(activations, torch.Tensor) else torch.from_numpy(np.asarray(activations))
    )
    if tuple(tensor.shape) != (expected_rows, d_model):
        raise UsageError(
            f"activations of {hook}: expected shape ({expected_rows}, {d_model}), got {tuple(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        raise UsageError(f"activations of {hook}: expected floating point numbers, got {tensor.dtype}")
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


def encode_rows(
    x: torch.Tensor, record: RecordLayout, unit: bool
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Raw rows float32 [n, D] -> records uint8 [n, record_bytes], and which rows are bad (NaN, Inf, overflow).

    With ``unit`` the stored row is (x - mean) / norm, else x itself; norm and mean are in the record either way.
    """
    records = np.zeros((x.shape[0], record.record_bytes), dtype=np.uint8)
    mean = x.mean(dim=1)
    centered = x - mean[:, None]
    norm = torch.linalg.vector_norm(centered, dim=1)
    if unit:
        stored = torch.where(norm[:, None] > 0, centered / norm[:, None], torch.zeros_like(centered))
    else:
        stored = x
    target = torch.from_numpy(record.rows(records))
    target.copy_(stored)
    record.norm(records)[:] = norm.numpy()
    record.mean(records)[:] = mean.numpy()
    bad = ~(torch.isfinite(target).all(dim=1) & torch.isfinite(norm) & torch.isfinite(mean))
    return records, bad.numpy()
