"""An SAE inside a Hugging Face model: its reconstruction spliced in, or some of its latents steered.

This stands above ``train`` and ``harvest``, which know of SAEs and of hooks in models, and never of one
another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from numbers import Integral

import torch
from torch import Tensor, nn

from .common.errors import UsageError
from .harvest.model.hook_points import resolve_hook
from .harvest.model.hooks import replaced, watched
from .harvest.model.loading import num_layers_of
from .train.layer_transcoder import make_layer_transcoder
from .train.sae import SAE
from .train.sae_config import SAETarget


@contextmanager
def attach(
    sae: SAE,
    model: nn.Module,
    *,
    steer: Mapping[int, float] | None = None,
    add: Mapping[int, float] | None = None,
    splice: bool | None = None,
    hook: str | None = None,
) -> Iterator[nn.Module]:
    """Within the block every forward of ``model`` runs through ``sae``, those of ``generate`` too.

    Without ``steer`` and ``add`` the activation is replaced by its reconstruction. With them only what the
    change of these latents changes in the reconstruction is added to the activation, so that the SAE's error
    stays out of it; ``splice=True`` replaces the activation by the changed reconstruction instead. Gradients
    do not pass.

    A transcoder reads its own hook, and what it predicts from there replaces the activation at its target. A
    cross-layer transcoder replaces the activations at all its targets: that at layer t by what its latents of
    the layers up to t predict, which read the model as it is with the earlier targets replaced (the
    replacement model of Ameisen et al. 2025).

    Args:
        model: a Hugging Face causal model (``AutoModelForCausalLM``), on any device.
        steer: latent -> the activation that it is set to on every row, 0 switches it off.
        add: latent -> what is added to its activation.
        splice: see above.
        hook: where; the SAE's own hook if None. A transcoder has its own.

    Raises:
        UsageError: no such latent, a value that is not finite, no such hook, or a hook of another width; a
            crosscoder, which reads several hooks at once; a cross-layer transcoder whose rule compares the
            latents of several layers.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        advice = ": hand in its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise UsageError(
            f"SAE {sae.cfg.name} attaches to a Hugging Face causal model, got {type(model).__name__}{advice}"
        )
    change = _Change(dict(steer or {}), dict(add or {}), not (steer or add) if splice is None else splice)
    _check_latents(sae, change)
    if sae.cfg.hooks is not None and sae.cfg.targets is None:
        raise UsageError(
            f"SAE {sae.cfg.name} is a {sae.cfg.shape} of {sae.cfg.hook}, which reads layers that come after "
            "those that it would replace: run the model once, join the activations (train.sae_hooks.join), "
            "and call the SAE on them"
        )
    if sae.cfg.predicted and hook is not None:
        targets = ", ".join(target.hook for target in sae.cfg.predicted)
        raise UsageError(
            f"SAE {sae.cfg.name} is a {sae.cfg.shape} from {sae.cfg.hook} to {targets}: leave out hook"
        )
    num_layers, model_name = num_layers_of(model.config), type(model).__name__
    with ExitStack() as stack:

        def replace(place: str, new: Callable[[Tensor], Tensor]) -> None:
            point = resolve_hook(model, place, num_layers, model_name)
            stack.enter_context(replaced(model, point, new, None))

        if not sae.cfg.predicted:
            place = hook or sae.cfg.hook
            replace(place, lambda x: _reconstructed(sae, change, x, place))
        else:
            parts = [sae]
            if sae.cfg.targets is not None:
                parts = [make_layer_transcoder(sae, layer) for layer in range(sae.cfg.num_layers)]
            prediction = _Prediction(parts, sae.cfg.predicted, change)
            for number, part in enumerate(parts):
                point = resolve_hook(model, part.cfg.hook, num_layers, model_name)
                stack.enter_context(watched(model, point, partial(prediction.read, number)))
            for number, target in enumerate(sae.cfg.predicted):
                replace(target.hook, partial(prediction.replace, number))
        yield model


@dataclass(frozen=True)
class _Change:
    """What is done to the codes: latents that are set, latents that are added to, and whether the whole
    reconstruction takes the activation's place, or only what the change changes in it.
    """

    set_to: Mapping[int, float]
    added: Mapping[int, float]
    splice: bool

    def of_latents(self, first: int, count: int) -> "_Change":
        """The same for the latents from ``first`` on, which are numbered from 0 then."""
        own = [
            {latent - first: value for latent, value in part.items() if first <= latent < first + count}
            for part in (self.set_to, self.added)
        ]
        return _Change(own[0], own[1], self.splice)

    def apply(self, sae: SAE, normalized: Tensor) -> Tensor:
        """The changed prediction of normalized rows [B, D], or what changes in it: normalized, [B, O]."""
        pairs = sae.encode_sparse(normalized) if self.splice or self.set_to else None
        made = normalized.new_zeros(len(normalized), sae.cfg.d_decoded)
        if self.splice and pairs is not None:
            made += sae.predict(pairs, normalized)
        for latent, value in self.set_to.items():
            assert pairs is not None
            here, now = pairs.latent == latent, normalized.new_zeros(len(normalized))
            now.index_add_(0, pairs.rows()[here], pairs.value[here])
            made += (value - now)[:, None] * sae.W_dec[latent]
        for latent, value in self.added.items():
            made += value * sae.W_dec[latent]
        return made


def _is_whole_number(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_latents(sae: SAE, change: _Change) -> None:
    for latent, value in [*change.set_to.items(), *change.added.items()]:
        if not _is_whole_number(latent) or not 0 <= latent < sae.cfg.num_latents or not isfinite(value):
            raise UsageError(
                f"latent {latent!r} to {value}: expected a latent from 0 to {sae.cfg.num_latents - 1} and a "
                "finite value"
            )
    if both := sorted(change.set_to.keys() & change.added.keys()):
        raise UsageError(f"latents {both} are both set (steer) and added to (add): choose one")


def _rows_of(sae: SAE, place: str, width: int, x: Tensor) -> Tensor:
    """An activation [..., width] as float32 rows on the SAE's device."""
    if x.shape[-1] != width:
        raise UsageError(
            f"SAE {sae.cfg.name} is of width {width}, and {place} of this model has {x.shape[-1]}"
        )
    return x.reshape(-1, width).to(sae.W_dec.device).float()


@torch.no_grad()
def _reconstructed(sae: SAE, change: _Change, x: Tensor, place: str) -> Tensor:
    """What comes in the place of an activation [..., D] that an autoencoder reconstructs."""
    rows = _rows_of(sae, place, sae.cfg.d_model, x)
    normalized, removed = sae.normalizer.apply(rows)
    made = change.apply(sae, normalized)
    result = sae.to_raw(made, removed)
    if not change.splice:  # the change of the reconstruction, without what inverting adds to every row
        result = rows + result - sae.to_raw(torch.zeros_like(made), removed)
    return result.reshape(x.shape).to(x)


class _Prediction:
    """What transcoders predict during a forward of the model: the sum over those that have read their hook.

    ``parts`` is the one transcoder, or those of the layers of a cross-layer transcoder.
    """

    def __init__(self, parts: Sequence[SAE], targets: Sequence[SAETarget], change: _Change) -> None:
        self.parts, self.targets = parts, targets
        size = parts[0].cfg.num_latents
        self.changes = [change.of_latents(number * size, size) for number in range(len(parts))]
        self.splice = change.splice
        self.seen: set[int] = set()
        self.sums: Tensor | None = None  # [B, the widths of all targets], normalized

    @torch.no_grad()
    def read(self, number: int, x: Tensor) -> None:
        """Add what part ``number`` predicts from the activation at its hook."""
        part = self.parts[number]
        rows = _rows_of(part, part.cfg.hook, part.cfg.d_model, x)
        made = self.changes[number].apply(part, part.normalizer.apply(rows)[0])
        if self.sums is None or number in self.seen:  # another forward, maybe after one that failed
            self.seen, self.sums = set(), torch.zeros_like(made)
        self.seen.add(number)
        self.sums += made

    @torch.no_grad()
    def replace(self, number: int, y: Tensor) -> Tensor:
        """What comes in the place of the activation at target ``number``."""
        target = self.targets[number]
        for part in (self.parts[i] for i in range(number + 1) if i not in self.seen):
            raise UsageError(
                f"SAE {part.cfg.name}: {part.cfg.hook} comes after {target.hook} in this model, so that "
                "nothing was read there yet when it is replaced"
            )
        assert self.sums is not None
        old = _rows_of(self.parts[0], target.hook, target.d_model, y)
        first = sum(each.d_model for each in self.targets[:number])
        new = target.to_raw(self.sums[:, first : first + target.d_model])
        result = new if self.splice else old + new
        if number == len(self.targets) - 1:
            self.seen, self.sums = set(), None
        return result.reshape(y.shape).to(y)
