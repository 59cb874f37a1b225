"""Whether hooks give what their names say: a few tokens through the model, before the long work."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ...common.errors import UsageError
from ...common.hook_names import parse_hook
from .hook_points import HookPoint, resolve_hook
from .hooks import read_hooks

PROBE_SEQUENCES, PROBE_POSITIONS = 2, 8
# A missing norm or scale in a block is far above this share of what the block adds.
_SUM_TOLERANCE = 0.05


@dataclass(frozen=True)
class HookOutput:
    """What a hook gives: tensors [sequences, positions, width], maybe on another device than other hooks."""

    width: int
    dtype: torch.dtype
    device: torch.device


def probe_hooks(
    model: nn.Module,
    points: Iterable[HookPoint],
    forward: Callable[[torch.Tensor], object],
    *,
    num_layers: int,
    model_name: str,
    max_positions: int | None,
    device: torch.device,
) -> dict[str, HookOutput]:
    """What each hook gives, found by running the model on a few tokens (on ``device``) before the long work.

    Raises:
        UsageError: a hook that never fires, gives another shape than [sequences, positions, width], an
            ``attn_out`` or ``mlp_out`` that is not what its block adds to the residual stream, or a
            ``resid_mid`` that is not the stream with ``attn_out`` added.
    """
    points = list(points)
    wanted = {point.name: point for point in points}
    layers = sorted({layer for name in wanted for layer in _layer_of_half(name)})
    for layer in layers:
        for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            name = f"{kind}.{layer}"
            wanted.setdefault(name, resolve_hook(model, name, num_layers, model_name))
    positions = min(PROBE_POSITIONS, max_positions or PROBE_POSITIONS)
    ids = torch.arange(PROBE_SEQUENCES * positions, device=device).reshape(PROBE_SEQUENCES, positions) + 1
    ids %= model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    seen: dict[str, torch.Tensor] = {}

    def receive(name: str, x: torch.Tensor) -> None:
        seen[name] = x.clone()

    read_hooks(lambda: forward(ids), model, wanted.values(), receive, ids.shape)
    asked = {point.name for point in points}
    for name, x in seen.items():
        if x.ndim != 3 or x.shape[:2] != ids.shape or not x.is_floating_point():
            why = "" if name in asked else f" (needed to check what block {name.rsplit('.')[-1]} adds up to)"
            raise UsageError(
                f"hook {name}{why}: expected a float tensor [sequences, positions, width], here "
                f"({PROBE_SEQUENCES}, {positions}, width), got {x.dtype} {tuple(x.shape)}; give a module "
                "path instead"
            )
    for layer in layers:
        _check_sum(seen, layer)
        if f"resid_mid.{layer}" in seen:
            _check_middle(seen, layer)
    return {
        point.name: HookOutput(int(x.shape[2]), x.dtype, x.device)
        for point in points
        for x in [seen[point.name]]
    }


def _layer_of_half(name: str) -> list[int]:
    parsed = parse_hook(name)
    return [parsed[1]] if parsed is not None and parsed[0] in ("attn_out", "mlp_out", "resid_mid") else []


def _check_sum(seen: dict[str, torch.Tensor], layer: int) -> None:
    """resid_post = resid_pre + attn_out + mlp_out, in sequential and in parallel blocks alike."""
    error = _error_of_sum(seen, layer, "resid_post", ("attn_out", "mlp_out"))
    if error is not None:
        raise UsageError(
            f"block {layer} of this model does not add up as resid_pre + attn_out + mlp_out = resid_post "
            f"(relative error {error:.2g}), so attn_out.{layer} and mlp_out.{layer} have no "
            "meaning here; give module paths instead"
        )


def _check_middle(seen: dict[str, torch.Tensor], layer: int) -> None:
    """resid_mid = resid_pre + attn_out, which no place of a parallel block holds."""
    error = _error_of_sum(seen, layer, "resid_mid", ("attn_out",))
    if error is not None:
        raise UsageError(
            f"block {layer} of this model has no resid_mid.{layer}: nothing in it reads resid_pre + attn_out "
            f"(relative error {error:.2g}), as where attention and MLP read the same stream in parallel; "
            f"take resid_pre.{layer}, or mlp_in.{layer} for what the MLP reads"
        )


def _error_of_sum(
    seen: dict[str, torch.Tensor], layer: int, total: str, halves: tuple[str, ...]
) -> float | None:
    """The relative error of ``total`` = resid_pre + ``halves`` at a layer; None where it is rounding."""
    rounding = torch.finfo(seen[f"{total}.{layer}"].dtype).eps  # of the stream, which may be far larger
    names = (f"{kind}.{layer}" for kind in ("resid_pre", total, *halves))
    before, after, *parts = (seen[name].float().cpu() for name in names)  # maybe of several devices
    added = torch.stack(parts).sum(0)
    difference = float((after - before - added).norm())
    scale = float(torch.maximum((after - before).norm(), added.norm()))
    # NaN passes here: it is reported later, with its document and position.
    if difference > _SUM_TOLERANCE * scale + rounding * float(before.norm() + after.norm()):
        return difference / scale
    return None
