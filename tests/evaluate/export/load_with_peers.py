"""Run by an interpreter that has the other libraries (see test_peers.py); prints what differs, as JSON.

A case is a folder with ``export/`` and ``expected.safetensors``: rows x [B, D], and of our SAE features
[B, F] (times the factor of the export) and reconstruction [B, D]. Those of a transcoder have the target, too.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def saelens(folder: Path) -> Any:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return sae.encode(x), sae(x)

    return type(sae).__name__, forward


def dictionary_learning(folder: Path) -> Any:
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), device="cpu")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return sae.encode(x), sae(x)

    return type(sae).__name__, forward


def sparsify(folder: Path) -> Any:
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        out = sae(x)
        dense = torch.zeros(x.shape[0], sae.num_latents)
        return dense.scatter_(1, out.latent_indices, out.latent_acts), out.sae_out

    return type(sae).__name__, forward


LOADERS = {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}


@torch.no_grad()
def differences(case: Path) -> dict[str, Any]:
    expected = load_file(case / "expected.safetensors")
    report = json.loads((case / "export" / "saecache-export.json").read_text("utf-8"))
    name, forward = LOADERS[report["format"]](case / "export")
    features, reconstruction = forward(expected["x"])
    ours, x = expected["features"], expected["x"]
    active, there = ours != 0, features != 0
    same = (active == there).all(1)
    x = expected.get("target", x)  # what a transcoder predicts may be of another size
    size = (x - x.mean(1, keepdim=True)).norm(dim=1).clamp_min(1e-30)
    error = (reconstruction - expected["reconstruction"]).norm(dim=1) / size
    return {
        "class": name,
        "mask": float((active ^ there).sum() / (active | there).sum()),
        "feature": float((features - ours)[active & there].abs().max() / ours.abs().max()),
        "reconstruction": float(error[same].max()),
        "rows_that_agree": float(same.float().mean()),
    }


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        found = {case.name: differences(case) for case in sorted(Path(sys.argv[1]).iterdir())}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
