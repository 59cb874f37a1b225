"""The arguments of a writer, checked and brought into one form."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.errors import UsageError
from ..config import StorageConfig
from ..layout import MAX_CONTEXT, MAX_WIDTH, TokensKind, check_hook_names
from .planned_size import plan_layout

SequenceArrays = dict[str, NDArray[np.int32]]  # "ids" and "document", those that exist


def check_types(hooks: Any, heldout_fraction: Any, storage: Any, identity: Any) -> None:
    """Refuse settings of another kind than a writer takes, before anything is written.

    Raises:
        UsageError: naming the argument, what was expected and what was given.
    """
    for name, value, kind, expected in (
        ("hooks", hooks, Mapping, "a mapping {name: width}, as {'layer3': 768}"),
        ("identity", identity, Mapping, "a mapping of facts, as {'source': 'my simulation'}"),
        ("heldout_fraction", heldout_fraction, int | float | np.number, "a number in [0, 1)"),
        (
            "storage",
            storage,
            StorageConfig | None,
            "a saecache.StorageConfig, as StorageConfig(dtype='float32')",
        ),
    ):
        if not isinstance(value, kind):
            raise UsageError(f"{name}: expected {expected}, got {value!r:.80}")
    for hook in hooks:
        if not isinstance(hook, str):
            raise UsageError(f"hooks: expected names as texts, got {hook!r:.80}")


def check_settings(
    hooks: Mapping[str, int], context: int, heldout_fraction: float, storage: StorageConfig
) -> None:
    """Refuse what cannot become a cache.

    Raises:
        UsageError: naming the argument, what was expected and what was given.
    """
    if not hooks:
        raise UsageError("hooks: expected at least one hook name with its width")
    check_hook_names(list(hooks))
    for hook, width in hooks.items():
        if not 1 <= width <= MAX_WIDTH:
            raise UsageError(f"hooks: {hook} has width {width}, expected 1 to {MAX_WIDTH}")
    if not 1 <= context <= MAX_CONTEXT:
        raise UsageError(f"context must be from 1 to {MAX_CONTEXT}, got {context}")
    if not 0 <= heldout_fraction < 1:
        raise UsageError(f"heldout_fraction must be in [0, 1), got {heldout_fraction}")
    plan_layout(hooks, context, storage, train_rows=1)  # refuses chunks beyond the format


def sequence_arguments(
    ids: Any, documents: Any, keep: Any, context: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Arguments of ``write_sequences``: ids, documents int32 [n, context], keep bool [n, context].

    Raises:
        UsageError: another shape or type.
    """
    ids, documents, keep = int32_copy(ids, "ids"), int32_copy(documents, "documents"), np.asarray(keep)
    for name, array in (("ids", ids), ("documents", documents), ("keep", keep)):
        if array.shape != (len(ids), context):
            raise UsageError(f"{name}: expected shape ({len(ids)}, {context}), got {array.shape}")
    if keep.dtype != np.bool_:
        raise UsageError(f"keep: expected bool, got {keep.dtype}")
    return ids, documents, keep


def row_arguments(
    documents: Any, rows: int, first: int
) -> tuple[TokensKind, NDArray[np.integer], SequenceArrays]:
    """Arguments of ``write_rows``: the kind of cache, a document for each row [rows, 1], and what is stored.

    Args:
        documents: int [rows], or None when every row is its own.
        rows: how many are written.
        first: number of the first of them in the cache.

    Raises:
        UsageError: another number of documents.
    """
    if documents is None:
        return "none", np.arange(first, first + rows)[:, None], {}
    numbers = int32_copy(documents, "documents").reshape(-1, 1)
    if len(numbers) != rows:
        raise UsageError(f"documents: expected {rows} of them, got {len(numbers)}")
    return "documents", numbers, {"document": numbers}


def check_counts(counts: Any) -> None:
    """Counts for the manifest.

    Raises:
        UsageError: something else than whole numbers from 0.
    """
    if wrong := {name: count for name, count in counts.items() if not isinstance(count, int) or count < 0}:
        raise UsageError(f"counts: expected whole numbers from 0, got {wrong}")


def check_activations(activations: Mapping[str, Any], hooks: Mapping[str, int], rows: int) -> None:
    """Activations of every hook as a caller gives them: hook -> [rows, D].

    Raises:
        UsageError: other hooks, shapes or types.
    """
    check_hooks(activations, hooks)
    for hook, width in hooks.items():
        check_rows(activations[hook], rows, width, hook)


def check_hooks(activations: Mapping[str, Any], hooks: Mapping[str, int]) -> None:
    """Refuse activations of other hooks."""
    if not isinstance(activations, Mapping):
        raise UsageError(
            f"activations: expected a mapping {{hook: rows}} of hooks {sorted(hooks)}, got "
            f"{type(activations).__name__}"
        )
    if set(activations) != set(hooks):
        raise UsageError(f"activations: expected hooks {sorted(hooks)}, got {sorted(activations)}")


def check_rows(activations: Any, expected_rows: int, d_model: int, hook: str) -> None:
    """Activations of one hook as a caller gives them: torch or numpy, [n, D], any float type and device.

    Raises:
        UsageError: another shape or type.
    """
    if not isinstance(activations, torch.Tensor | np.ndarray):
        raise UsageError(
            f"activations of {hook}: expected a numpy array or a torch tensor, got "
            f"{type(activations).__name__}: numpy.asarray(x) makes an array"
        )
    if isinstance(activations, np.ma.MaskedArray):  # whose masked values would be stored as if they were none
        raise UsageError(
            f"activations of {hook}: a cache keeps no mask: fill the masked values, or drop rows"
        )
    shape = tuple(activations.shape)
    if shape != (expected_rows, d_model):
        raise UsageError(f"activations of {hook}: expected shape ({expected_rows}, {d_model}), got {shape}")
    dtype = activations.dtype
    if not (dtype.is_floating_point if isinstance(dtype, torch.dtype) else dtype.kind == "f"):
        raise UsageError(f"activations of {hook}: expected floating point numbers, got {dtype}")


def as_float32(activations: Any) -> NDArray[np.float32]:
    """Rows [n, D] of a caller as C-contiguous float32 in main memory, copied only if they must be."""
    if isinstance(activations, torch.Tensor):
        tensor = activations.detach().to(device="cpu", dtype=torch.float32).contiguous()
        rows: NDArray[np.float32] = tensor.numpy()
        return rows
    return np.ascontiguousarray(activations, dtype=np.float32)


def int32_copy(values: Any, name: str) -> NDArray[np.int32]:
    """A copy of whole numbers from -1 to 2^31 - 1.

    Raises:
        UsageError: they are something else.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise UsageError(f"{name}: expected integers, got {array.dtype}")
    if array.size and (array.min() < -1 or array.max() >= 2**31):
        raise UsageError(
            f"{name}: expected values from -1 to {2**31 - 1}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)
