"""One small forward before the long work: widths of the hooks, and whether they are what their names say."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..common.errors import UsageError
from .hooks import HookPoint, parse_hook, read_hooks, resolve_hook

PROBE_SEQUENCES, PROBE_POSITIONS = 2, 8
# A missing norm or scale in a block is far above this share of what the block adds.
_SUM_TOLERANCE = 0.05


def probe(
    model: nn.Module,
    points: Iterable[HookPoint],
    forward: Callable[[torch.Tensor], object],
    *,
    num_layers: int,
    model_name: str,
    max_positions: int | None,
) -> dict[str, int]:
    """Width of each hook, found by running the model on a few tokens.

    Raises:
        UsageError: a hook that never fires, gives another shape than [sequences, positions, width], or an
            ``attn_out`` or ``mlp_out`` that is not what its block adds to the residual stream.
    """
    points = list(points)
    wanted = {point.name: point for point in points}
    for layer in sorted({layer for name in wanted for layer in _halves_of(name)}):
        for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            name = f"{kind}.{layer}"
            wanted.setdefault(name, resolve_hook(model, name, num_layers, model_name))
    positions = min(PROBE_POSITIONS, max_positions or PROBE_POSITIONS)
    device = next(model.parameters()).device
    ids = torch.arange(PROBE_SEQUENCES * positions, device=device).reshape(PROBE_SEQUENCES, positions) + 1
    ids %= model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    seen: dict[str, torch.Tensor] = {}

    def receive(name: str, x: torch.Tensor) -> None:
        seen[name] = x.clone()

    read_hooks(lambda: forward(ids), model, wanted.values(), receive)
    for name, x in seen.items():
        if x.ndim != 3 or x.shape[:2] != ids.shape or not x.is_floating_point():
            raise UsageError(
                f"hook {name}: expected a float tensor [sequences, positions, width], here "
                f"({PROBE_SEQUENCES}, {positions}, width), got {x.dtype} {tuple(x.shape)}; choose "
                "another module"
            )
    for layer in sorted({layer for name in (p.name for p in points) for layer in _halves_of(name)}):
        _check_sum(seen, layer)
    return {point.name: int(seen[point.name].shape[2]) for point in points}


def _halves_of(name: str) -> list[int]:
    parsed = parse_hook(name)
    return [parsed[1]] if parsed is not None and parsed[0] in ("attn_out", "mlp_out") else []


def _check_sum(seen: dict[str, torch.Tensor], layer: int) -> None:
    """resid_post = resid_pre + attn_out + mlp_out, in sequential and in parallel blocks alike."""
    rounding = torch.finfo(seen[f"resid_post.{layer}"].dtype).eps  # of the stream, which may be far larger
    before, after = seen[f"resid_pre.{layer}"].float(), seen[f"resid_post.{layer}"].float()
    added = seen[f"attn_out.{layer}"].float() + seen[f"mlp_out.{layer}"].float()
    difference = float((after - before - added).norm())
    scale = float(torch.maximum((after - before).norm(), added.norm()))
    # NaN passes here: it is told later, with its document and position.
    if difference > _SUM_TOLERANCE * scale + rounding * float(before.norm() + after.norm()):
        raise UsageError(
            f"block {layer} of this model does not add up as resid_pre + attn_out + mlp_out = resid_post "
            "(relative "
            f"error {difference / scale:.2g}), so attn_out.{layer} and mlp_out.{layer} have no meaning "
            "here; give module paths instead"
        )
