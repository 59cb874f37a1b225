"""Why Probabilistic TopK's training differs from its inference: what its noisy gates choose, by temperature.

    python benchmarks/papers/gates.py --cache CACHE --runs runs/papers/medium --form medium

For each SAE of section probabilistic: the share of the latents chosen without noise that are chosen with it,
and FVU of both choices with the same weights, at several temperatures. As the temperature falls the gate
becomes a draw with probability sigmoid(LayerNorm(a)), so that the noise of the choice does not fade. What was
measured of SAEs that are not in ``--runs`` is kept.
"""

import json
from typing import Any

import numpy as np
import torch
from forms import FORMS
from run import parser, read

from saecache import SAE, load_sae, open_cache
from saecache.store.durable import write_bytes

BETAS = (5.0, 1.0, 0.3, 0.1, 0.01, 1e-4)
ROWS = 2048


@torch.no_grad()
def choose(
    sae: SAE, x: torch.Tensor, beta: float, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents chosen at temperature ``beta``, int64 [B, k], and the dense codes [B, F].

    Args:
        x: float32 [B, D], normalized rows.
        noise: logits of uniform numbers, [B, F]; None chooses as at inference.
    """
    variant = sae.cfg.variant
    a = (x - sae.b_dec) @ sae.W_enc.T
    t = torch.nn.functional.layer_norm(a, a.shape[1:]) if variant.layer_norm else a
    t = (t if noise is None else t + noise) / beta
    # Without the magnitude the order of sigmoid(t) is that of t, which does not tie.
    magnitude = variant.magnitude_weight
    score = magnitude * a.abs() - torch.sigmoid(-t) if magnitude else t
    chosen = score.topk(variant.k, dim=1).indices
    return chosen, torch.zeros_like(a).scatter(1, chosen, a.gather(1, chosen))


def measure(sae: SAE, x: torch.Tensor) -> dict[str, Any]:
    """For every temperature: the share chosen with noise as without, and FVU with and without noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(x), sae.cfg.num_latents, generator=generator).clamp_(1e-7, 1 - 1e-7).logit_()
    total = float((x - x.mean(0)).double().square().sum())
    found: dict[str, Any] = {"beta": list(BETAS), "same": [], "fvu": [], "fvu with noise": []}
    for beta in BETAS:
        clean, codes = choose(sae, x, beta, None)
        noisy, noisy_codes = choose(sae, x, beta, noise)
        same = (clean[:, :, None] == noisy[:, None, :]).any(2).float().mean()
        found["same"].append(float(f"{float(same):.4g}"))
        for name, some in (("fvu", codes), ("fvu with noise", noisy_codes)):
            error = float((sae.decode(some) - x).double().square().sum())
            found[name].append(float(f"{error / total:.4g}"))
    return found


def main() -> None:
    settings = parser(__doc__).parse_args()
    cache = open_cache(settings.cache)
    x = cache.rows(FORMS[settings.form].hook, np.arange(ROWS), "heldout", "unit")
    results = settings.results / settings.form
    gates = (read(results, "gates") or {"gates": {}})["gates"]
    for file in sorted(settings.runs.glob("probabilistic*/**/*_seed0/sae/cfg.json")):
        sae = load_sae(file.parent)
        variant = sae.cfg.variant
        if variant.kind == "probabilistic_topk" and variant.gate == "concrete":
            gates[sae.cfg.name.removesuffix("_seed0")] = measure(sae, x)
    content = {"gates": gates, "rows": ROWS}
    write_bytes(results / "gates.json", (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
