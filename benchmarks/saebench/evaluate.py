"""SAEBench's core and sparse-probing evaluations of an exported SAE, without a network.

Run it in an environment of its own, because sae-bench needs numpy below 2 (README.md beside this file):

    python benchmarks/saebench/evaluate.py EXPORT --model MODEL --text TEXT.jsonl --labelled REVIEWS.jsonl

EXPORT is a folder of ``saecache export --format saelens``; MODEL a folder of a Hugging Face model. TEXT has
a column ``text``; in --labelled, which may be repeated, each line has ``text`` and ``label``. What SAEBench
would take from the Hub is made here: the model is wrapped by SAELens's HookedProxyLM, because TransformerLens
loads only models of its list; tokens come from TEXT; and the activations for probing, from the labelled
texts. All figures are computed by SAEBench's own functions.
"""

import argparse
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

os.environ["JAXTYPING_DISABLE"] = "1"  # its checks allow no model but TransformerLens's own class

import torch
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.evals.core import main as core
from sae_bench.evals.sparse_probing import main as probing
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.sae_bench_utils import activation_collection, dataset_utils
from sae_lens import SAE
from sae_lens.load_model import load_model

CONTEXT, BATCH = 128, 8


class Exported(BaseSAE):
    """An exported SAE with the interface that SAEBench expects; decoder rows of norm 1."""

    def __init__(self, sae, model_name: str, layer: int, module: str) -> None:
        cfg = sae.cfg
        super().__init__(cfg.d_in, cfg.d_sae, model_name, layer, torch.device("cpu"), torch.float32, module)
        self.W_enc.data, self.W_dec.data, self.b_dec.data = sae.W_enc.data, sae.W_dec.data, sae.b_dec.data
        if getattr(sae, "b_enc", None) is not None:
            self.b_enc.data = sae.b_enc.data
        self.sae = sae
        self.cfg.architecture = cfg.architecture()
        assert self.check_decoder_norms(), "SAEBench compares latents by their size, so rows need norm 1"

    def encode(self, x):
        return self.sae.encode(x)

    def decode(self, feature_acts):
        """Normalizing SAEs remember the rows that were encoded last, and forget them: decode after encode."""
        return self.sae.decode(feature_acts)

    def forward(self, x):
        return self.decode(self.encode(x))


def find_module(model_folder: str, hook: str) -> tuple[str, int]:
    """The module whose output is ``blocks.L.hook_resid_post``, and L."""
    from transformers import AutoConfig, AutoModelForCausalLM

    parts = hook.split(".")
    if len(parts) != 3 or parts[2] != "hook_resid_post":
        raise SystemExit(f"expected an SAE of blocks.L.hook_resid_post, got {hook}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
        )
    layers = model.config.num_hidden_layers
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers
    ]
    return f"{min(lists, key=len)}.{parts[1]}", int(parts[1])


def read_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]


def core_figures(sae: Exported, model, text: list[str], batches: int) -> dict:
    """SAEBench's core metrics on the first tokens of the texts."""
    tokens = dataset_utils.tokenize_and_concat_dataset(model.tokenizer, text, CONTEXT, add_bos=True)
    batches = min(batches, len(tokens) // BATCH)
    if batches == 0:
        raise SystemExit(
            f"the text gives {len(tokens)} sequences of {CONTEXT} tokens, expected {BATCH} or more"
        )
    parts = list(tokens[: batches * BATCH].split(BATCH))
    stream = iter(parts + parts)
    store = SimpleNamespace(
        get_batch_tokens=lambda size: next(stream),
        reset_input_dataset=lambda: None,
        context_size=CONTEXT,
        store_batch_size_prompts=BATCH,
    )
    config = core.CoreEvalConfig(
        batch_size_prompts=BATCH,
        n_eval_reconstruction_batches=batches,
        n_eval_sparsity_variance_batches=batches,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        context_size=CONTEXT,
        llm_dtype="float32",
    )
    special = model.tokenizer
    ignored = {special.pad_token_id, special.eos_token_id, special.bos_token_id}
    figures, _ = core.run_evals(
        sae=sae, activation_store=store, model=model, eval_config=config, ignore_tokens=ignored
    )
    return figures


def probing_figures(sae: Exported, model, path: str, out: Path, seed: int) -> dict:
    """SAEBench's sparse probing of a labelled file; its activations are written where SAEBench reads them."""
    by_label: dict[str, list[str]] = {}
    for line in read_lines(path):
        by_label.setdefault(str(line["label"]), []).append(line["text"])
    size = min(len(texts) for texts in by_label.values())
    if len(by_label) < 2 or size < 10:
        raise SystemExit(
            f"{path}: expected two labels or more with ten texts each, got {len(by_label)} of {size}"
        )
    train, test = {}, {}
    for label, texts in by_label.items():
        random.Random(seed).shuffle(texts)
        cut = size * 4 // 5
        train[label], test[label] = texts[:cut], texts[cut:size]
    name = Path(path).stem
    folder = out / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    acts = {}
    for split, data in (("train", train), ("test", test)):
        tokens = dataset_utils.tokenize_data_dictionary(data, model.tokenizer, CONTEXT, "cpu")
        acts[split] = activation_collection.get_all_llm_activations(
            tokens, model, BATCH, sae.cfg.hook_layer, sae.cfg.hook_name, mask_bos_pad_eos_tokens=True
        )
    means = {split: activation_collection.create_meaned_model_activations(acts[split]) for split in acts}
    config = SparseProbingEvalConfig(
        random_seed=seed,
        dataset_names=[name],
        probe_train_set_size=2 * len(next(iter(train.values()))),
        probe_test_set_size=2 * len(next(iter(test.values()))),
        llm_batch_size=BATCH,
        llm_dtype="float32",
        model_name="local",
        k_values=[1, 2, 5],
    )
    results = {}
    for k in config.k_values:
        _, results[f"llm_top_{k}_test_accuracy"] = probe_training.train_probe_on_activations(
            means["train"], means["test"], select_top_k=k
        )
    _, results["llm_test_accuracy"] = probe_training.train_probe_on_activations(
        means["train"], means["test"], select_top_k=None, use_sklearn=True
    )
    torch.save({**acts, "llm_results": results}, folder / f"{name}_activations.pt")
    figures, _ = probing.run_eval_single_sae(config, sae, model, "cpu", str(folder))
    return {key: value for key, value in figures.items() if not isinstance(value, dict)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text")
    parser.add_argument("--labelled", action="append", default=[])
    parser.add_argument("--out", default="saebench")
    parser.add_argument("--batches", type=int, default=16, help=f"of {BATCH} sequences of {CONTEXT} tokens")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    if not (args.text or args.labelled):
        parser.error("give --text, --labelled or both")
    exported = SAE.load_from_disk(args.export)
    module, layer = find_module(args.model, exported.cfg.metadata.hook_name)
    model = load_model("AutoModelForCausalLM", args.model, device="cpu", hook_names=[module])
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    sae, out = Exported(exported, args.model, layer, module), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    figures: dict = {}
    if args.text:
        text = [line["text"] for line in read_lines(args.text)]
        with torch.no_grad():
            figures["core"] = core_figures(sae, model, text, args.batches)
        write(figures, out)
    for path in args.labelled:
        probed = figures.setdefault("sparse_probing", {})
        probed[Path(path).stem] = probing_figures(sae, model, path, out, args.seed)
        write(figures, out)
    print(json.dumps(figures, indent=2))


def write(figures: dict, out: Path) -> None:
    """Write the figures so far, because the next ones may take long."""
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
