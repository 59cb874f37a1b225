"""sparsify: ``cfg.json`` and ``sae.safetensors``, read with ``SparseCoder.load_from_disk``. TopK only.

Written after eai-sparsify 1.3.3 (sparse_coder.py, fused_encoder.py). Its config has no room for the origin of
an SAE; ``saecache-export.json`` holds it.
"""

import json
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ...store.durable import write_bytes
from ...train.tensor_file import read_tensors, write_tensors
from .format import Exportable, Format, Forward, Written
from .rules import Form, integer_k

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae.safetensors"


class Sparsify(Format):
    name: ClassVar[str] = "sparsify"
    forms: ClassVar[frozenset[Form]] = frozenset({"topk"})

    def write(self, what: Exportable, folder: Path) -> Written:
        sae, scaled = what.sae, what.space.scaled
        tensors = {
            "encoder.weight": sae.W_enc,
            "encoder.bias": scaled(sae.b_enc),
            "W_dec": sae.W_dec,
            "b_dec": scaled(sae.b_dec),
        }
        write_tensors(folder / WEIGHTS_FILE, tensors)
        config = {
            "activation": "topk",
            "expansion_factor": max(1, sae.cfg.num_latents // sae.cfg.d_model),  # num_latents decides
            "normalize_decoder": sae.cfg.variant.unit_norm_decoder,
            "num_latents": sae.cfg.num_latents,
            "k": integer_k(sae),
            "multi_topk": False,  # a loss of training; at inference it only costs time
            "skip_connection": False,
            "transcode": False,
            "d_in": sae.cfg.d_model,
        }  # nothing else, because sparsify prints whatever it does not know
        write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode("utf-8"))
        return Written(architecture="SparseCoder")

    def read(self, folder: Path) -> Forward:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        tensors = read_tensors(folder / WEIGHTS_FILE)

        def forward(v: Tensor) -> tuple[Tensor, Tensor]:
            pre = torch.relu((v - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"])
            top = pre.topk(config["k"], dim=-1, sorted=False)
            features = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
            return features, features @ tensors["W_dec"] + tensors["b_dec"]

        return forward

    def loading(self, folder: Path) -> str:
        return f"from sparsify import SparseCoder; sae = SparseCoder.load_from_disk({str(folder)!r})"
