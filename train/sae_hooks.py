"""The hooks of an SAE: those whose rows it encodes, and those that a transcoder predicts.

The rows of a crosscoder hold those of several hooks side by side, each normalized for itself.
Legend: B rows, D width of what is encoded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.errors import UsageError
from ..store.normalization import Normalizer, RowState, is_invertible_alone
from ..store.reading.reader import ActivationCache
from .sae_config import HookRows, SAEConfig

JOINED = "joined"  # the kind of normalization of a crosscoder's rows, which has one for each hook


@dataclass(frozen=True)
class JoinedNormalizer:
    """The normalizations of rows that hold those of several hooks side by side, [..., sum of the widths].

    It has the interface of :class:`Normalizer` that SAEs use.
    """

    parts: tuple[Normalizer, ...]
    kind: str = JOINED

    @property
    def d_model(self) -> int:
        return sum(part.d_model for part in self.parts)

    def apply(self, x: Tensor) -> tuple[Tensor, list[RowState]]:
        """Raw rows to normalized rows, and what ``invert`` needs to undo it."""
        done = [part.apply(rows) for part, rows in zip(self.parts, self.split(x), strict=True)]
        return torch.cat([rows for rows, _ in done], dim=-1), [state for _, state in done]

    def invert(self, y: Tensor, states: Any) -> Tensor:
        """Normalized rows (or their reconstructions) back to raw rows."""
        parts = zip(self.parts, self.split(y), states, strict=True)
        return torch.cat([part.invert(rows, state) for part, rows, state in parts], dim=-1)

    def split(self, rows: Tensor) -> list[Tensor]:
        """The rows of each hook, as views."""
        return list(torch.split(rows, [part.d_model for part in self.parts], dim=-1))


def normalization_of(hooks: Sequence[HookRows]) -> dict[str, Any]:
    """The ``normalization`` in the config of an SAE that encodes these hooks."""
    if len(hooks) == 1:
        return hooks[0].normalization
    return {"kind": JOINED, "d_model": sum(part.d_model for part in hooks)}


def name_of(hooks: Sequence[HookRows]) -> str:
    """The ``hook`` in the config of an SAE that encodes these hooks."""
    return "+".join(part.hook for part in hooks)


def encoded_hooks(cfg: SAEConfig) -> tuple[HookRows, ...]:
    """The hooks whose rows an SAE encodes, in the order in which they lie side by side."""
    if cfg.hooks is not None:
        return cfg.hooks
    return (HookRows(hook=cfg.hook, d_model=cfg.d_model, normalization=cfg.normalization),)


def decoded_hooks(cfg: SAEConfig) -> tuple[HookRows, ...]:
    """The hooks whose rows an SAE reconstructs: those that it encodes, or a transcoder's targets."""
    return cfg.predicted or encoded_hooks(cfg)


def all_hooks(cfg: SAEConfig) -> tuple[HookRows, ...]:
    """Every hook that an SAE encodes or reconstructs."""
    return encoded_hooks(cfg) + cfg.predicted


def place_of(cfg: SAEConfig) -> tuple[tuple[tuple[str, int], ...], ...]:
    """The hooks and widths that an SAE encodes, and those that it reconstructs.

    SAEs of one place have comparable directions.
    """
    return tuple(
        tuple((part.hook, part.d_model) for part in parts)
        for parts in (encoded_hooks(cfg), decoded_hooks(cfg))
    )


def make_normalizer(cfg: SAEConfig) -> Normalizer | JoinedNormalizer:
    """The normalization of the rows that an SAE encodes."""
    if cfg.hooks is None:
        return Normalizer.from_dict(cfg.normalization)
    return JoinedNormalizer(tuple(part.normalizer for part in cfg.hooks))


def check_hooks(cfg: SAEConfig) -> None:
    """Make sure that what a config says about hooks fits together.

    Raises:
        UsageError: it does not. KeyError, TypeError, ValueError: a normalization cannot be read.
    """
    for part in all_hooks(cfg):
        if not part.hook.isprintable():
            raise UsageError(f"hook holds characters that cannot be shown: {part.hook!r:.80}")
        if part.normalizer.d_model != part.d_model:
            raise UsageError(
                f"normalization.d_model is {part.normalizer.d_model}, and the hook's width {part.d_model}"
            )
    if cfg.hooks is not None and (
        len(cfg.hooks) < 2
        or cfg.target is not None
        or cfg.normalization != normalization_of(cfg.hooks)
        or cfg.hook != name_of(cfg.hooks)
        or sum(part.d_model for part in cfg.hooks) != cfg.d_model
    ):
        raise UsageError(
            f"its hooks should be two or more, without a target, of {cfg.d_model} dimensions in all, named "
            f"in hook with + between them, with normalization {JOINED}"
        )
    for part in cfg.predicted:
        if not is_invertible_alone(part.normalizer.kind):
            raise UsageError(
                f"target.normalization is {part.normalizer.kind}, which cannot be inverted for a row that "
                "is only predicted"
            )
    if cfg.targets is not None:
        _check_layers(cfg)


def _check_layers(cfg: SAEConfig) -> None:
    encoded, predicted = encoded_hooks(cfg), cfg.predicted
    widths = [{part.d_model for part in parts} for parts in (encoded, predicted)]
    if (
        cfg.hooks is None
        or len(predicted) != len(encoded)
        or any(len(each) > 1 for each in widths)
        or any(part.skip for part in predicted)
        or cfg.num_latents % len(encoded)
    ):
        raise UsageError(
            "a cross-layer transcoder needs as many targets as hooks, without skip, equally wide each, and a "
            f"number of latents that they divide: {len(encoded)} hooks, {len(predicted)} targets, "
            f"{cfg.num_latents} latents"
        )


def read_hook(
    cache: ActivationCache, rows: HookRows, index_B: NDArray[np.int64], split: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read rows of one hook in their own normalization, and raw: float32 [B, D] each, on ``device``.

    A normalization by one number for all rows uses the number of the SAE's training, also on another cache.
    """
    normalizer = rows.normalizer
    raw_BD = cache.rows(rows.hook, index_B, split=split, normalization="none").to(device)
    if normalizer.starts_from == "raw":
        return normalizer.apply(raw_BD)[0], raw_BD
    x_BD = cache.rows(rows.hook, index_B, split=split, normalization=normalizer.kind)
    return x_BD.to(device), raw_BD


def read_hooks_side_by_side(
    cache: ActivationCache,
    hooks: Sequence[HookRows],
    index_B: NDArray[np.int64],
    split: str,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """:func:`read_hook` for several hooks, side by side: float32 [B, sum of the widths] each."""
    found = [read_hook(cache, rows, index_B, split, device) for rows in hooks]
    if len(found) == 1:
        return found[0]
    return torch.cat([x for x, _ in found], dim=1), torch.cat([raw for _, raw in found], dim=1)


def join(cfg: SAEConfig, rows: Mapping[str, Tensor]) -> Tensor:
    """Rows of every hook that a crosscoder encodes, by hook, side by side: [..., D].

    Raises:
        UsageError: a hook is missing, or there is another one.
    """
    hooks = [part.hook for part in encoded_hooks(cfg)]
    if rows.keys() != set(hooks):
        raise UsageError(
            f"SAE {cfg.name} encodes rows of {', '.join(hooks)}, got {', '.join(rows) or 'none'}"
        )
    return torch.cat([rows[hook] for hook in hooks], dim=-1)


def split_by_hook(cfg: SAEConfig, rows: Tensor) -> dict[str, Tensor]:
    """The parts of reconstructed rows [..., O] (or of decoder rows) by hook, as views."""
    hooks = decoded_hooks(cfg)
    return dict(
        zip(
            [part.hook for part in hooks],
            torch.split(rows, [part.d_model for part in hooks], dim=-1),
            strict=True,
        )
    )
