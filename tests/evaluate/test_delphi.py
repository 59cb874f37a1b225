"""delphi's latent cache: every code of the held-out windows, and no other; delphi reads it, if installed."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from saecache.common.errors import SaecacheError, UsageError
from saecache.evaluate.export import export_delphi
from saecache.evaluate.export.windows import find_windows
from saecache.evaluate.rows import choose_rows
from saecache.store import open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.train import SAE
from saecache.train.variants.topk import TopK

from ..test_cli import saecache
from .conftest import CONTEXT, HOOK, LATENTS, make_sae

DELPHI_PYTHON = os.environ.get("SAECACHE_DELPHI_PYTHON")
WINDOW = 8
LOAD = """
import json, sys
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents.loader import LatentDataset
from transformers import PreTrainedTokenizerFast
from tokenizers import Tokenizer, models
vocab = {str(i): i for i in range(50)}
words = Tokenizer(models.WordLevel(vocab, unk_token="0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0")
config = ConstructorConfig(example_ctx_len=8, min_examples=3, n_non_activating=2)
sampling = SamplerConfig(n_examples_train=2, n_examples_test=1, n_quantiles=1)
data = LatentDataset(sys.argv[1], sampling, config, tokenizer)
found = {}
for buffer in data.buffers:
    for latent in buffer:
        values = latent.activation_data.activations
        found[latent.latent.latent_index] = [len(values), float(values.float().sum())]
records = [record.latent.latent_index for record in data]
print(json.dumps({"tokens": list(data.tokens.shape), "latents": found, "records": len(records)}))
"""


@pytest.fixture(scope="module")
def sae(cache: ActivationCache) -> SAE:
    return make_sae(cache, "topk", TopK(num_latents=LATENTS, k=6))


@pytest.fixture
def sae_dir(sae: SAE, tmp_path: Path) -> Path:
    sae.save(tmp_path / "topk" / "sae")
    return tmp_path / "topk" / "sae"


def dense(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Codes [W, T, F] and tokens [W, T] of what was written."""
    files = sorted((folder / HOOK).glob("*.safetensors"))
    tokens = load_file(files[0])["tokens"]
    codes = np.zeros((*tokens.shape, LATENTS), dtype=np.float32)
    for path in files:
        group, first = load_file(path), int(path.stem.partition("_")[0])
        window, position, latent = group["locations"].astype(np.int64).T
        assert latent.max(initial=0) + first <= int(path.stem.partition("_")[2])
        codes[window, position, latent + first] = group["activations"]
    return codes, tokens


def test_windows_are_those_of_held_out_documents(cache: ActivationCache) -> None:
    rows, _ = choose_rows(cache, 10**9)
    windows = find_windows(cache, rows, WINDOW)
    documents = np.asarray(cache.documents[:])
    sequence, position, _ = cache.locate(np.arange(cache.num_rows("heldout")), split="heldout")
    heldout = set(documents[sequence, position].tolist())
    wanted = [
        s * CONTEXT + p
        for s in range(len(documents))
        for p in range(0, CONTEXT, WINDOW)
        if set(documents[s, p : p + WINDOW].tolist()) <= heldout
        and s * CONTEXT + p + WINDOW <= max(sequence * CONTEXT + position) + 1
    ]
    assert windows.start.tolist() == wanted and len(wanted) > 20
    ids = np.asarray(cache.tokens[:]).reshape(-1)
    assert all(
        np.array_equal(ids[at : at + WINDOW], one) for at, one in zip(windows.start, windows.ids, strict=True)
    )


def test_codes_are_those_of_the_sae(cache: ActivationCache, sae: SAE, sae_dir: Path, tmp_path: Path) -> None:
    result = export_delphi(sae_dir, tmp_path / "out", cache=cache, window=WINDOW, show_progress=False)
    codes, tokens = dense(tmp_path / "out")
    rows, _ = choose_rows(cache, 10**9)
    windows = find_windows(cache, rows, WINDOW)
    assert np.array_equal(tokens, windows.ids)
    index = np.asarray(cache.token_index("heldout")[:]).astype(np.int64)
    expected = np.zeros_like(codes)
    x = cache.rows(HOOK, np.arange(len(index)), "heldout", sae.normalizer.kind)
    for row, code in zip(index, sae.encode(x).numpy(), strict=True):
        at = np.flatnonzero((windows.start <= row) & (row < windows.start + WINDOW))
        if len(at):
            expected[at[0], row - windows.start[at[0]]] = code
    assert np.allclose(codes, expected.astype(np.float16), atol=1e-6, rtol=1e-3)
    assert result.facts["codes"] == int((codes != 0).sum()) > 100
    assert result.facts["silent_latents"] == int((~(codes != 0).any((0, 1))).sum()) >= 5
    config = json.loads((tmp_path / "out" / HOOK / "config.json").read_text())
    assert (config["model_name"], config["ctx_len"]) == ("tiny", WINDOW)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [HOOK]


def test_files_do_not_depend_on_blocks(
    cache: ActivationCache, sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_delphi(sae_dir, tmp_path / "a", cache=cache, window=WINDOW, show_progress=False)
    monkeypatch.setattr("saecache.evaluate.export.delphi.BLOCK_ROWS", 37)
    export_delphi(sae_dir, tmp_path / "b", cache=cache, window=WINDOW, show_progress=False)
    for path in (tmp_path / "a" / HOOK).iterdir():
        assert path.read_bytes() == (tmp_path / "b" / HOOK / path.name).read_bytes()


def test_a_wrong_file_is_found_and_nothing_is_left(
    cache: ActivationCache, sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saecache.evaluate.export import delphi

    write = delphi._write_group

    def shifted(module: Path, codes: Any, *rest: Any) -> None:
        codes = codes.copy()
        codes["position"] = (codes["position"] + 1) % WINDOW
        write(module, codes, *rest)

    monkeypatch.setattr(delphi, "_write_group", shifted)
    with pytest.raises(SaecacheError, match=r"is not what the SAE gives: \d+ of \d+ codes differ"):
        export_delphi(sae_dir, tmp_path / "out", cache=cache, window=WINDOW, show_progress=False)
    assert not (tmp_path / "out").exists()


def test_bad_input_is_said_before_work(
    cache: ActivationCache, cache_without_heldout: ActivationCache, sae: SAE, sae_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="--window 7 should divide the 24 tokens"):
        export_delphi(sae_dir, out, cache=cache, window=7)
    with pytest.raises(UsageError, match="no window of 24 tokens lies within"):
        export_delphi(sae_dir, out, cache=cache, window=24, max_rows=9)
    with pytest.raises(UsageError, match="has no held-out rows"):
        export_delphi(sae_dir, out, cache=cache_without_heldout, window=WINDOW, other_cache=True)
    large = SAE(sae.cfg, {**dict(sae.named_buffers()), "b_enc": torch.full((LATENTS,), 1e6)})
    large.save(tmp_path / "large")
    with pytest.raises(UsageError, match=r"has a code of 1e\+06, and delphi stores float16"):
        export_delphi(tmp_path / "large", out, cache=cache, window=WINDOW, show_progress=False)
    assert not out.exists()


def test_the_command(cache: ActivationCache, sae_dir: Path, tmp_path: Path) -> None:
    arguments = ["export", sae_dir, "--format", "delphi", "--out", tmp_path / "out"]
    refused = saecache(*arguments)
    assert refused.returncode == 2 and "give --cache" in refused.stderr
    done = saecache(*arguments, "--cache", cache.path, "--window", WINDOW, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["format"], facts["module"], facts["window_tokens"]) == ("delphi", HOOK, WINDOW)
    other = saecache("export", sae_dir, "--format", "saelens", "--out", tmp_path / "b", "--window", 8)
    assert other.returncode == 2 and "--window has no effect with --format saelens" in other.stderr


@pytest.mark.skipif(
    DELPHI_PYTHON is None, reason="SAECACHE_DELPHI_PYTHON names no interpreter with eai-delphi"
)
def test_delphi_reads_it(cache: ActivationCache, sae_dir: Path, tmp_path: Path) -> None:
    export_delphi(sae_dir, tmp_path / "out", cache=open_cache(cache.path), window=WINDOW, show_progress=False)
    codes, tokens = dense(tmp_path / "out")
    assert DELPHI_PYTHON is not None
    done = subprocess.run(
        [DELPHI_PYTHON, "-c", LOAD, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == list(tokens.shape)
    counts = (codes != 0).sum((0, 1))
    assert {int(key): value[0] for key, value in found["latents"].items()} == {
        latent: int(count) for latent, count in enumerate(counts) if count
    }
    for key, (_, total) in found["latents"].items():
        assert total == pytest.approx(float(codes[:, :, int(key)].sum()), rel=1e-3)
    assert found["records"] > 10
    print("delphi:", len(found["latents"]), "latents,", found["records"], "records")
