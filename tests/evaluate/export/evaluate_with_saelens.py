"""Run by an interpreter that has SAELens (see test_saelens_figures.py): its own evaluation of exported SAEs.

Arguments: the model's folder, the module at the hook, a folder of exports, and ``tokens.safetensors`` with
ids int64 [n, T]. Prints the figures by export, as JSON.
"""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

BATCH = 8


def main() -> None:
    model_folder, module, exports, tokens_file = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        from sae_lens import SAE
        from sae_lens.evals import EvalConfig, run_evals
        from sae_lens.load_model import load_model
        from sae_lens.training.activation_scaler import ActivationScaler

        ids = load_file(tokens_file)["ids"]
        ids = ids[: len(ids) // BATCH * BATCH]
        model = load_model("AutoModelForCausalLM", model_folder, device="cpu", hook_names=[module])
        figures = {}
        for folder in sorted(Path(exports).iterdir()):
            sae = SAE.load_from_disk(folder)
            sae.cfg.metadata.hook_name = module
            batches = iter([*ids.split(BATCH), *ids.split(BATCH)])
            store = SimpleNamespace(
                get_batch_tokens=lambda size, batches=batches: next(batches),
                reset_input_dataset=lambda: None,
                context_size=ids.shape[1],
                store_batch_size_prompts=BATCH,
            )
            config = EvalConfig(
                batch_size_prompts=BATCH,
                n_eval_reconstruction_batches=len(ids) // BATCH,
                n_eval_sparsity_variance_batches=len(ids) // BATCH,
                compute_kl=True,
                compute_ce_loss=True,
                compute_sparsity_metrics=True,
                compute_variance_metrics=True,
            )
            with torch.no_grad():
                found, _ = run_evals(
                    sae, store, model, ActivationScaler(), config, exclude_special_tokens=False
                )
            figures[folder.name] = {key: value for group in found.values() for key, value in group.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
