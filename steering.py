"""An SAE inside a Hugging Face model: its reconstruction spliced in, or some of its latents steered.

This stands above ``train`` and ``harvest``, which know of SAEs and of hooks in models, and never of one
another.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any

from .common.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .train.sae import SAE


@contextmanager
def attach(
    sae: "SAE",
    model: "nn.Module",
    *,
    steer: Mapping[int, float] | None = None,
    add: Mapping[int, float] | None = None,
    splice: bool | None = None,
    hook: str | None = None,
) -> Iterator["nn.Module"]:
    """Within the block every forward of ``model`` runs through ``sae``, those of ``generate`` too.

    Without ``steer`` and ``add`` the activation is replaced by its reconstruction. With them only what the
    change of these latents changes in the reconstruction is added to the activation, so that the SAE's error
    stays out of it; ``splice=True`` replaces the activation by the changed reconstruction instead. Gradients
    do not pass.

    A transcoder reads its own hook, and what it predicts from there replaces the activation at its target.

    Args:
        model: a Hugging Face causal model (``AutoModelForCausalLM``), on any device.
        steer: latent -> the activation that it is set to on every row, 0 switches it off.
        add: latent -> what is added to its activation.
        splice: see above.
        hook: where; the SAE's own hook if None. A transcoder takes its own.

    Raises:
        UsageError: no such latent, a value that is not finite, no such hook, or a hook of another width; a
            crosscoder, which reads several hooks at once.
    """
    from .harvest.hook_points import resolve_hook
    from .harvest.hooks import replaced, watched
    from .harvest.loading import num_layers_of

    changes = {**(steer or {}), **(add or {})}
    for latent, value in changes.items():
        if not 0 <= latent < sae.cfg.num_latents or not isfinite(value):
            raise UsageError(
                f"latent {latent} to {value}: expected a latent from 0 to {sae.cfg.num_latents - 1} and a "
                "finite value"
            )
    if both := sorted((steer or {}).keys() & (add or {}).keys()):
        raise UsageError(f"latents {both} are both set (steer) and added to (add): choose one")
    if sae.cfg.hooks is not None:
        raise UsageError(
            f"SAE {sae.cfg.name} is a {sae.cfg.shape} of {sae.cfg.hook}, which reads layers that come after "
            "those that it would replace: run the model once, join the activations (train.sae_hooks.join), "
            "and call the SAE on them"
        )
    if sae.cfg.target is not None and hook is not None:
        raise UsageError(
            f"SAE {sae.cfg.name} is a transcoder from {sae.cfg.hook} to {sae.cfg.target.hook}: leave out hook"
        )
    place = sae.cfg.hook if sae.cfg.target is None else sae.cfg.target.hook
    layers = num_layers_of(model.config)
    point = resolve_hook(model, hook or place, layers, type(model).__name__)
    change = _changer(
        sae, steer or {}, add or {}, bool(not changes if splice is None else splice), hook or place
    )
    if sae.cfg.target is None:
        with replaced(model, point, lambda x: change(x, x), None):
            yield model
        return
    read: list[Tensor] = []

    def replace(y: "Tensor") -> "Tensor":
        if not read:
            raise UsageError(
                f"SAE {sae.cfg.name}: {sae.cfg.hook} comes after {place} in this model, so that nothing was "
                "read there yet when it is replaced"
            )
        return change(read.pop(), y)

    def keep(x: "Tensor") -> None:
        read[:] = [x]

    encoded = resolve_hook(model, sae.cfg.hook, layers, type(model).__name__)
    with watched(model, encoded, keep), replaced(model, point, replace, None):
        yield model


def _changer(
    sae: "SAE", steer: Mapping[int, float], add: Mapping[int, float], splice: bool, hook: str
) -> Callable[["Tensor", "Tensor"], "Tensor"]:
    """A function of what is encoded and what is replaced, [..., D] and [..., O]: what comes in the latter's
    place. For an autoencoder both are the same tensor.
    """
    import torch

    set_to = {latent: torch.tensor(float(value)) for latent, value in steer.items()}
    added = {latent: torch.tensor(float(value)) for latent, value in add.items()}

    @torch.no_grad()
    def change(x: "Tensor", y: "Tensor") -> "Tensor":
        sides = [(sae.cfg.hook, sae.cfg.d_model, x)] if y is not x else []
        for place, width, value in [*sides, (hook, sae.cfg.d_decoded, y)]:
            if value.shape[-1] != width:
                raise UsageError(
                    f"SAE {sae.cfg.name} is of width {width}, and {place} of this model has {value.shape[-1]}"
                )
        rows = x.reshape(-1, sae.cfg.d_model).to(sae.W_dec.device).float()
        replaced_rows = rows if y is x else y.reshape(-1, sae.cfg.d_decoded).to(rows)
        normalized, removed = sae.normalizer.apply(rows)
        pairs = sae.encode_sparse(normalized)
        before = sae.predict(pairs, normalized) if splice else torch.zeros_like(replaced_rows)
        moved = before + _moved(pairs, sae, set_to, added)
        result = sae.to_raw(moved, removed)
        if not splice:  # the change of the reconstruction, without what inverting adds to every row
            result = replaced_rows + result - sae.to_raw(before, removed)
        return result.reshape(y.shape).to(y)

    return change


def _moved(pairs: Any, sae: "SAE", set_to: Mapping[int, Any], added: Mapping[int, Any]) -> "Tensor":
    """What the changed latents add to the normalized reconstruction: float32 [B, D]."""
    import torch

    device = sae.W_dec.device
    moved = torch.zeros(pairs.num_rows, sae.cfg.d_decoded, device=device)
    row = pairs.rows()
    for latent, value in set_to.items():
        here = pairs.latent == latent
        now = torch.zeros(pairs.num_rows, device=device).index_add_(0, row[here], pairs.value[here])
        moved += (value.to(device) - now)[:, None] * sae.W_dec[latent]
    for latent, value in added.items():
        moved += value.to(device) * sae.W_dec[latent]
    return moved
