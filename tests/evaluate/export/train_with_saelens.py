"""Run by an interpreter that has SAELens (see test_saelens_figures.py): trains a TopK SAE with its own class.

Arguments: ``rows.safetensors`` with x float32 [n, D], the hook as TransformerLens names it, the new folder.
"""

import sys

import torch
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors.torch import load_file

LATENTS, K, STEPS, ROWS = 512, 16, 200, 512


def main() -> None:
    rows_file, hook, out = sys.argv[1:]
    torch.manual_seed(0)
    x = load_file(rows_file)["x"]
    metadata = SAEMetadata(model_name="demo", hook_name=hook)
    cfg = TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=LATENTS, k=K, metadata=metadata)
    sae = TopKTrainingSAE(cfg)
    optimizer = torch.optim.Adam(sae.parameters(), lr=2e-3)
    for step in range(STEPS):
        rows = x[torch.randint(len(x), (ROWS,))]
        found = sae.training_forward_pass(TrainStepInput(rows, {}, None, step, False))
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    sae.save_inference_model(out)


if __name__ == "__main__":
    main()
