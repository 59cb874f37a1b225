"""sparsify: ``cfg.json`` and ``sae.safetensors``, read with ``SparseCoder.load_from_disk``. TopK only.

Written after eai-sparsify 1.3.3 (sparse_coder.py, fused_encoder.py). Its config has no room for the origin of
an SAE; ``saecache-export.json`` holds it.
"""

import json
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ....common.errors import UsageError
from ....store.durable import write_bytes
from ....train.foreign.sparsify import CONFIG_FILE, WEIGHTS_FILE
from ....train.tensor_file import read_tensors, write_tensors
from ..format import Exportable, Format, Forward, Written
from ..rules import Form, integer_k
from ..transcoder import fold_transcoder


class Sparsify(Format):
    """The folder that ``SparseCoder.load_from_disk`` of sparsify loads."""

    forms: ClassVar[frozenset[Form]] = frozenset({"topk"})
    transcoder_forms: ClassVar[frozenset[Form]] = frozenset({"topk"})

    def write(self, what: Exportable, folder: Path) -> Written:
        sae, target = what.sae, what.sae.cfg.target
        write_tensors(folder / WEIGHTS_FILE, _tensors(what))
        config = {
            "activation": "topk",
            "expansion_factor": max(1, sae.cfg.num_latents // sae.cfg.d_model),  # num_latents decides
            "normalize_decoder": sae.cfg.variant.unit_norm_decoder and target is None,
            "num_latents": sae.cfg.num_latents,
            "k": integer_k(sae),
            "multi_topk": False,  # a loss of training; at inference it only costs time
            "skip_connection": target is not None and target.skip,
            "transcode": target is not None,
            "d_in": sae.cfg.d_model,
        }  # nothing else, because sparsify prints whatever it does not know
        write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode("utf-8"))
        return Written(architecture="SparseCoder")

    def read(self, folder: Path) -> Forward:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        tensors = read_tensors(folder / WEIGHTS_FILE)

        def forward(v: Tensor) -> tuple[Tensor, Tensor]:
            x = v if config["transcode"] else v - tensors["b_dec"]
            pre = torch.relu(x @ tensors["encoder.weight"].T + tensors["encoder.bias"])
            top = pre.topk(config["k"], dim=-1, sorted=False)
            features = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
            skip = v @ tensors["W_skip"].T if config["skip_connection"] else 0.0
            return features, features @ tensors["W_dec"] + tensors["b_dec"] + skip

        return forward

    def loading(self, folder: Path) -> str:
        return f"from sparsify import SparseCoder; sae = SparseCoder.load_from_disk({str(folder)!r})"


FORMAT = Sparsify()


def _tensors(what: Exportable) -> dict[str, Tensor]:
    """sparsify's names; a transcoder's decoder has the shape of its encoder there.

    Raises:
        UsageError: a transcoder whose target has another width.
    """
    sae, scaled = what.sae, what.space.scaled
    if sae.cfg.target is None:
        weights = {"W_enc": sae.W_enc, "b_enc": scaled(sae.b_enc), "W_dec": sae.W_dec}
        weights["b_dec"] = scaled(sae.b_dec)
    elif sae.cfg.d_decoded != sae.cfg.d_model:
        raise UsageError(
            f"SAE {sae.cfg.name} predicts rows of width {sae.cfg.d_decoded} from rows of width "
            f"{sae.cfg.d_model}, and sparsify has one width for both: share its own folder instead"
        )
    else:
        weights = fold_transcoder(sae, what.space)
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    return {names.get(name, name): tensor for name, tensor in weights.items()}
