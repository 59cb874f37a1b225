"""FVU, L0, CE loss recovered and KL: SAELens's own evaluation and ours agree, on our SAEs and on SAELens's.

Same text, same model (the built-in one), and sequences of one document each without BOS, so that both splice,
ablate and score the same positions. Needs an interpreter with SAELens, see ``test_peers.py``.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saecache
from saecache.evaluate import run as evaluate
from saecache.evaluate.export import export_sae
from saecache.harvest import LanguageModel
from saecache.harvest.text.tokenizing import encode
from saecache.store import CacheWriter, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig, run

PEER_PYTHON = os.environ.get("SAECACHE_PEER_PYTHON")
HOOK, MODULE, CONTEXT, SEQUENCES = "resid_post.3", "gpt_neox.layers.3", 128, 160
DEMO = Path(saecache.__file__).parent / "harvest" / "builtin" / "demo"
VARIANTS = [
    {"kind": "topk", "k": 16, "name": "topk"},
    {"kind": "batch_topk", "k": 16, "name": "batch_topk"},
    {"kind": "feature_choice", "k": 16, "name": "feature_choice"},
]
LIMIT = 2e-3  # of each figure: rows of the cache are float16, and SAELens adds 1e-5 to their std


def make_cache(path: Path, model: LanguageModel) -> ActivationCache:
    text = "".join(file.read_text("utf-8") for file in sorted(Path(os.__file__).parent.glob("[a-f]*.py")))
    ids = np.asarray(encode(model.tokenizer, [text])[0][: SEQUENCES * CONTEXT]).astype(np.int32)
    ids = ids.reshape(SEQUENCES, CONTEXT)
    documents = np.repeat(np.arange(SEQUENCES, dtype=np.int32)[:, None], CONTEXT, 1)
    keep = np.ones(ids.shape, dtype=bool)
    identity = {"model": {"name": "builtin:demo"}}
    with CacheWriter(
        path, hooks={HOOK: 160}, context=CONTEXT, identity=identity, heldout_fraction=0.3
    ) as writer:
        for start in range(0, SEQUENCES, 16):
            part = slice(start, start + 16)
            rows = model.activations(torch.from_numpy(ids[part]).long(), [HOOK])[HOOK].reshape(-1, 160)
            writer.write_sequences(
                ids=ids[part], documents=documents[part], keep=keep[part], activations={HOOK: rows}
            )
    return open_cache(path)


def run_peer(*arguments: Path | str) -> str:
    """What a script prints that is run by the interpreter with SAELens."""
    assert PEER_PYTHON is not None
    peer = subprocess.run([PEER_PYTHON, *arguments], capture_output=True, text=True, check=False, timeout=900)
    assert peer.returncode == 0, peer.stderr
    return peer.stdout


@pytest.mark.skipif(
    PEER_PYTHON is None, reason="SAECACHE_PEER_PYTHON names no interpreter with the libraries"
)
def test_saelens_measures_what_we_measure(tmp_path: Path) -> None:
    model = LanguageModel.load("builtin:demo", device="cpu")
    cache = make_cache(tmp_path / "cache", model)
    config = TrainConfig.model_validate(
        {
            "variants": VARIANTS,
            "num_latents": 512,
            "batch_rows": 1024,
            "epochs": 4,
            "normalization": "unit",
            "optimizer": {"learning_rate": 2e-3},
            "log": {"progress": False},
            "device": "cpu",
        }
    )
    done = run(config, cache, tmp_path / "run")
    token_index = np.asarray(cache.token_index("heldout")[:]).astype(np.int64)
    sequences = np.unique(token_index // CONTEXT)
    sequences = sequences[: len(sequences) // 8 * 8]
    settings: dict[str, Any] = {"num_latents": 0, "device": "cpu", "show_progress": False}
    settings |= {"max_rows": len(sequences) * CONTEXT, "ce_tokens": len(sequences) * CONTEXT}
    assert PEER_PYTHON is not None
    here = Path(__file__)
    foreign, rows = tmp_path / "exports" / "foreign", tmp_path / "rows.safetensors"
    training = cache.rows(HOOK, np.arange(cache.num_rows("train")), normalization="none").contiguous()
    save_file({"x": training}, rows)
    run_peer(here.with_name("train_with_saelens.py"), rows, "blocks.3.hook_resid_post", foreign)
    places = [done.run_dir, foreign]
    results = evaluate(places, cache, model=model, out=tmp_path / "results.json", **settings)
    for name, folder in done.saes.items():
        export_sae(folder, "saelens", tmp_path / "exports" / name, cache=cache)
    ids = torch.from_numpy(np.asarray(cache.tokens[sequences])).long()
    save_file({"ids": ids}, tmp_path / "tokens.safetensors")
    script, tokens = here.with_name("evaluate_with_saelens.py"), tmp_path / "tokens.safetensors"
    said = run_peer(script, DEMO, MODULE, tmp_path / "exports", tokens)
    theirs: dict[str, dict[str, float]] = json.loads(said.splitlines()[-1])
    assert {sae.name for sae in results.saes} == {"topk", "batch_topk", "feature_choice", "foreign"}
    for sae in results.saes:
        costs, found = sae.language_model, theirs[sae.name]
        assert costs is not None and costs.num_tokens == len(sequences) * (CONTEXT - 1)
        pairs = {
            "FVU": (sae.raw.fvu, 1 - found["explained_variance"]),
            "L0": (sae.codes.l0, found["l0"]),
            "CE clean": (costs.ce_clean, found["ce_loss_without_sae"]),
            "CE with the SAE": (costs.ce_sae, found["ce_loss_with_sae"]),
            "CE ablated": (costs.ce_zero, found["ce_loss_with_ablation"]),
            "CE recovered": (costs.ce_recovered, found["ce_loss_score"]),
        }
        print(sae.name, *(f"{key}: {ours:.5f} / {other:.5f}" for key, (ours, other) in pairs.items()))
        for key, (ours, other) in pairs.items():
            assert ours == pytest.approx(other, rel=LIMIT), (sae.name, key)
        assert sae.raw.fvu is not None and 0.01 < sae.raw.fvu < 0.9
