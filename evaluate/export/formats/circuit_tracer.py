"""circuit-tracer: ``config.yaml`` and, for each layer, ``W_enc_L.safetensors`` and ``W_dec_L.safetensors``,
read with ``load_clt``. Cross-layer transcoders only.

Written after circuit-tracer 0.5.0 (transcoder/cross_layer_transcoder.py). It subtracts nothing before
encoding and normalizes nothing:

    features of layer l = rule(W_enc_l x_l + b_enc_l),
    prediction of layer t = sum over l <= t of (features of layer l) W_dec_l[:, t - l] + b_dec_t

Here rows c_l x_l - b_in are encoded and t_t times the targets are predicted, where c_l and t_t are the
numbers that normalize them (1 if the export takes normalized rows, and then gives them, too). So features are
the codes, and

    W_enc = c W_enc          W_dec = W_dec / t
    b_enc = b_enc - W_enc b_in          b_dec = b_dec / t

Every number is computed in float64 and rounded once. Legend: B rows, F latents of a layer, L layers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import yaml
from torch import Tensor

from ....common.errors import UsageError
from ....common.hook_names import parse_hook
from ....store.durable import write_bytes
from ....train import SAE
from ....train.foreign.hook_names import TRANSFORMER_LENS
from ....train.sae_config import HookRows
from ....train.sae_hooks import encoded_hooks
from ....train.tensor_file import read_tensors, write_tensors
from ..format import Exportable, Format, Forward, Written
from ..rules import Form

CONFIG_FILE = "config.yaml"
_HOOKS = {**TRANSFORMER_LENS, "mlp_in": "mlp.hook_in"}  # within a block


class CircuitTracer(Format):
    """The folder of a cross-layer transcoder that circuit-tracer loads."""

    forms: ClassVar[frozenset[Form]] = frozenset()
    cross_layer_forms: ClassVar[frozenset[Form]] = frozenset({"relu", "threshold"})

    def write(self, what: Exportable, folder: Path) -> Written:
        sae = what.sae
        encoded, predicted = encoded_hooks(sae.cfg), sae.cfg.predicted
        config = {
            "model_kind": "cross_layer_transcoder",
            "model_name": what.provenance.model,
            "feature_input_hook": _hook_of(sae, encoded),
            "feature_output_hook": _hook_of(sae, predicted),
        }
        raw = what.space.rows == "raw"
        for layer, tensors in enumerate(_fold(sae, raw=raw)):
            W_dec = tensors.pop("W_dec")
            named = {f"{name}_{layer}": tensor.float() for name, tensor in tensors.items()}
            write_tensors(folder / f"W_enc_{layer}.safetensors", named)
            write_tensors(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": W_dec.float()})
        write_bytes(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False).encode("utf-8"))
        return Written(architecture="CrossLayerTranscoder")

    def read(self, folder: Path) -> Forward:
        layers: list[dict[str, Tensor]] = []
        while (path := folder / f"W_enc_{len(layers)}.safetensors").exists():
            i = len(layers)
            found = read_tensors(path) | read_tensors(folder / f"W_dec_{i}.safetensors")
            layers.append({name.removesuffix(f"_{i}"): tensor for name, tensor in found.items()})

        def forward(v: Tensor) -> tuple[Tensor, Tensor]:
            features = []
            sums = [tensors["b_dec"].expand(len(v), -1) for tensors in layers]
            for i, (x, tensors) in enumerate(zip(v.chunk(len(layers), dim=1), layers, strict=True)):
                pre = x @ tensors["W_enc"].T + tensors["b_enc"]
                active = pre > tensors["threshold"] if "threshold" in tensors else pre > 0
                features.append(pre * active)
                for t in range(i, len(layers)):
                    sums[t] = sums[t] + features[i] @ tensors["W_dec"][:, t - i]
            return torch.cat(features, dim=1), torch.cat(sums, dim=1)

        return forward

    def loading(self, folder: Path) -> str:
        return (
            "import torch; from circuit_tracer.transcoder.cross_layer_transcoder import load_clt; "
            f"clt = load_clt({str(folder)!r}, dtype=torch.float32)"
        )


FORMAT = CircuitTracer()


def _fold(sae: SAE, *, raw: bool) -> list[dict[str, Tensor]]:
    """The tensors of each layer, float64: W_enc [F, d], b_enc [F], b_dec [d], W_dec [F, L - l, d] and, if the
    SAE has one, threshold [F].
    """
    cfg = sae.cfg
    num_layers, size = cfg.num_layers, cfg.num_latents // cfg.num_layers
    own = {name: tensor.double().cpu() for name, tensor in sae.named_buffers() if tensor.is_floating_point()}
    b_in, b_dec = own["b_in"].chunk(num_layers), own["b_dec"].chunk(num_layers)
    decoders = own["W_dec"].view(cfg.num_latents, num_layers, -1)
    encoded, predicted = (
        [(part.normalizer.factor or 1.0) if raw else 1.0 for part in parts]
        for parts in (encoded_hooks(cfg), cfg.predicted)
    )
    scale = torch.tensor(predicted, dtype=torch.float64)[:, None]
    found = []
    for layer in range(num_layers):
        latents = slice(layer * size, (layer + 1) * size)
        W_enc = own["W_enc"][latents]
        tensors = {
            "W_enc": W_enc * encoded[layer],
            "b_enc": own["b_enc"][latents] - W_enc @ b_in[layer],
            "b_dec": b_dec[layer] / predicted[layer],
            "W_dec": decoders[latents, layer:] / scale[layer:],
        }
        if sae.threshold is not None:
            tensors["threshold"] = own["threshold"].expand(cfg.num_latents)[latents]
        found.append({name: tensor.contiguous() for name, tensor in tensors.items()})
    return found


def _hook_of(sae: SAE, parts: Sequence[HookRows]) -> str:
    """The library's name of a hook within every block.

    Raises:
        UsageError: the hooks are not one kind of hook at the blocks from 0 on.
    """
    parsed = [parse_hook(part.hook) for part in parts]
    kinds, blocks = {each[0] for each in parsed if each}, [each[1] for each in parsed if each]
    if len(kinds) != 1 or blocks != list(range(len(parts))):
        raise UsageError(
            f"SAE {sae.cfg.name} has the hooks {', '.join(part.hook for part in parts)}, and circuit_tracer "
            "numbers the layers of a cross-layer transcoder from 0, with one kind of hook: train it on all "
            "blocks of the model, as hook=mlp_in.* and target.hook=mlp_out.*"
        )
    return _HOOKS[kinds.pop()]
