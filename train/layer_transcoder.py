"""One layer of a cross-layer transcoder, as a transcoder: a model that runs reads its layers one by one.

Legend: F all latents, L layers, d and o widths of a layer's rows.
"""

import torch

from ..common.errors import UsageError
from ..store.normalization import Normalizer
from .latent_shards import WITHOUT_LATENTS
from .sae import SAE
from .sae_config import SAETarget


def make_layer_transcoder(sae: SAE, layer: int) -> SAE:
    """The latents of a layer: from the rows of that layer to what they add to the targets of all layers.

    The targets lie side by side, [B, L * o], normalized as ``sae`` predicts them. The first layer has its
    ``b_dec``, so that the predictions of all layers add up to that of ``sae``. The tensors are views of those
    of ``sae``.

    Raises:
        UsageError: its rule compares the latents of several layers, so that a layer alone has no codes.
    """
    cfg = sae.cfg
    assert cfg.targets is not None and cfg.hooks is not None, "it has layers"
    if not (cfg.variant.has_threshold or cfg.variant.selects_alone):
        raise UsageError(
            f"SAE {cfg.name} ({cfg.kind}) chooses among the latents of all layers at once, and a model "
            "computes its layers one after the other: train a cross-layer transcoder whose rule decides "
            "latent by latent, as batch_topk, jumprelu and relu do"
        )
    size, width, part = cfg.num_latents // cfg.num_layers, cfg.d_decoded, cfg.hooks[layer]
    latents = slice(layer * size, (layer + 1) * size)
    tensors = {
        name: tensor if tensor.dim() == 0 else tensor[latents]
        for name, tensor in sae.named_buffers()
        if name not in WITHOUT_LATENTS
    }
    tensors["b_dec"] = sae.b_dec if layer == 0 else torch.zeros_like(sae.b_dec)
    tensors["b_in"] = sae.b_in[layer * part.d_model : (layer + 1) * part.d_model]
    target = SAETarget(
        hook="+".join(each.hook for each in cfg.targets),
        d_model=width,
        normalization=Normalizer("none", width).to_dict(),
    )
    changes = {
        "name": f"{cfg.name} at {part.hook}",
        "d_model": part.d_model,
        "num_latents": size,
        "k": None,
        "hook": part.hook,
        "normalization": part.normalization,
        "hooks": None,
        "targets": None,
        "target": target,
    }
    return SAE(cfg.model_copy(update=changes), tensors)
