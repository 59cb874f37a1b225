"""Which positions become rows: by role, and by norm where attention sinks are to be left out."""

import numpy as np
import torch
from numpy.typing import NDArray

from .config import SelectionConfig
from .packing import Role

# Attention sinks are judged against the median norm over the first block of the stream, of about this many
# tokens: a fixed block, so that the result does not depend on batch size or interruptions.
CALIBRATION_TOKENS = 1 << 14


def keep_by_role(roles: NDArray[np.uint8], selection: SelectionConfig) -> NDArray[np.bool_]:
    """Positions that become rows as far as roles go. bool, shape of ``roles``."""
    keep: NDArray[np.bool_] = roles != Role.PADDING
    if selection.exclude_bos:
        keep &= roles != Role.BOS
    if selection.exclude_separator:
        keep &= roles != Role.SEPARATOR
    return keep


def centered_norms(x: torch.Tensor) -> torch.Tensor:
    """L2 norm of each row of x [n, D] less its mean, float32 [n]: the norm that caches store."""
    x = x.float()
    norms: torch.Tensor = torch.linalg.vector_norm(x - x.mean(dim=1, keepdim=True), dim=1)
    return norms


def drop_sinks(
    activations: dict[str, torch.Tensor], median_norms: dict[str, float], ratio: float
) -> NDArray[np.bool_]:
    """Rows to keep, bool [n]: those within ``ratio`` x the median norm at every hook.

    A row is the same token under every hook, so a sink at one hook is dropped from all. NaN is kept: the
    store refuses it by name.
    """
    keep: torch.Tensor | None = None
    for hook, x in activations.items():
        fine = ~(centered_norms(x) > ratio * median_norms[hook])
        keep = fine if keep is None else keep & fine
    assert keep is not None
    return keep.cpu().numpy()
