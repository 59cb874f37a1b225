"""Where each document has a sequence of its own, forwards are as long as their longest sequence."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.evaluate.language_model import Spliced, measure_language_model
from saecache.evaluate.sequences import choose_sequences
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest.model.forward import LENGTH_STEP, cpu_block
from saecache.harvest.model.loading import length_matters_of
from saecache.harvest.runner import run
from saecache.store import ActivationCache, open_cache

from ..job.test_resume import digests, stopped_while_reading
from ..test_runner import expected_rows

MakeConfig = Callable[..., HarvestConfig]
CONTEXT = 256  # two sequences of a forward
EXACT = {"dtype": "float32", "normalization": "none", "chunk_rows": 64, "shard_bytes": 1 << 15}


@pytest.fixture(scope="module")
def settings(model_folder: Callable[..., Path]) -> dict[str, Any]:
    return {
        "model": model_folder("neox", positions=CONTEXT),
        "tokens": {"context": CONTEXT, "packing": "per_document"},
        "num_tokens": 3000,
        "storage": EXACT,
    }


@pytest.fixture(scope="module")
def whole(make_config: MakeConfig, settings: dict[str, Any], tmp_path_factory: Any) -> ActivationCache:
    return open_cache(run(make_config(**settings), tmp_path_factory.mktemp("whole") / "cache").path)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of the token ids that the model runs on, in whatever order threads have."""
    seen: list[tuple[int, int]] = []
    read = LanguageModel.read

    def noting(self: LanguageModel, ids: Any, *arguments: Any) -> None:
        seen.append(tuple(ids.shape))
        read(self, ids, *arguments)

    monkeypatch.setattr(LanguageModel, "read", noting)
    return seen


@pytest.fixture
def as_version_0_2() -> Iterator[pytest.MonkeyPatch]:
    """Every forward has the whole context, until the patch is undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saecache.harvest.job.batch_size._cut_padding", lambda *_: False)
        yield patch


def lengths_needed(cache: ActivationCache) -> list[int]:
    """Of each block, by its longest sequence."""
    counts, block = (cache.tokens[:] >= 0).sum(axis=1), cpu_block(CONTEXT)
    longest = [int(counts[i : i + block].max()) for i in range(0, len(counts), block)]
    return [min(CONTEXT, -(-n // LENGTH_STEP) * LENGTH_STEP) for n in longest]


def test_forwards_are_as_long_as_their_longest_sequence(
    make_config: MakeConfig, settings: dict[str, Any], tmp_path: Path, shapes: list[tuple[int, int]]
) -> None:
    cache = open_cache(run(make_config(**settings), tmp_path / "cache").path)
    needed = lengths_needed(cache)
    assert len(set(needed)) > 2 and np.mean(needed) < CONTEXT
    first_block = needed[:1]  # is looked at before anything is written
    assert sorted(shapes) == sorted((cpu_block(CONTEXT), length) for length in first_block + needed)
    assert cache.provenance["conditions"]["forward_length"] == "longest sequence"


def test_the_rows_are_those_of_the_whole_context(whole: ActivationCache, settings: dict[str, Any]) -> None:
    model = LanguageModel.load(str(settings["model"]), dtype="float32", device="cpu")
    for hook in whole.hooks:
        for split in ("train", "heldout"):
            rows = whole.rows(hook, np.arange(whole.num_rows(split)), split)
            torch.testing.assert_close(rows, expected_rows(whole, hook, split, model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_bytes_depend_on_the_text_alone(
    make_config: MakeConfig, settings: dict[str, Any], whole: ActivationCache, tmp_path: Path, batch_size: int
) -> None:
    config = make_config(**settings, batch_size=batch_size)
    path = tmp_path / "cache"
    stopped_while_reading(config, path)
    run(config, path)
    assert digests(path) == digests(whole.path)


def test_several_threads_make_the_same_bytes(
    make_config: MakeConfig, settings: dict[str, Any], whole: ActivationCache, tmp_path: Path
) -> None:
    torch.set_num_threads(3)
    try:
        path = run(make_config(**settings), tmp_path / "cache").path
    finally:
        torch.set_num_threads(1)
    assert digests(Path(path)) == digests(whole.path)


def test_an_older_harvest_continues_as_it_was_begun(
    make_config: MakeConfig, settings: dict[str, Any], tmp_path: Path, as_version_0_2: pytest.MonkeyPatch
) -> None:
    config = make_config(**settings)
    longer = make_config(**settings | {"num_tokens": 4000})
    older, older_longer = (run(each, tmp_path / f"{each.num_tokens}").path for each in (config, longer))
    path = tmp_path / "cache"
    stopped_while_reading(config, path)
    as_version_0_2.undo()
    run(config, path)
    assert digests(path) == digests(Path(older))
    assert "forward_length" not in open_cache(path).provenance["conditions"]
    extended = run(longer, tmp_path / "extended", extend=path).path
    assert digests(Path(extended)) == digests(Path(older_longer))


def test_packed_sequences_are_not_cut(
    make_config: MakeConfig, settings: dict[str, Any], tmp_path: Path, shapes: list[tuple[int, int]]
) -> None:
    """Only the last one of a text has padding, and caches of version 0.2 are to keep their bytes."""
    packed = {"tokens": {"context": CONTEXT}, "num_tokens": 10**6}
    cache = open_cache(run(make_config(**settings | packed), tmp_path / "cache").path)
    assert cache.manifest.counts["padding"] > 0
    assert set(shapes) == {(cpu_block(CONTEXT), CONTEXT)}
    assert "forward_length" not in cache.provenance["conditions"]


def rotary(**settings: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(rope_parameters={"rope_theta": 10_000.0, **settings})


def test_of_which_models_the_length_matters() -> None:
    from transformers import Gemma3TextConfig, GPT2Config, Phi3Config

    assert not length_matters_of(rotary(rope_type="default"))
    assert not length_matters_of(rotary(rope_type="linear", factor=2.0))
    assert not length_matters_of(GPT2Config())
    assert not length_matters_of(Gemma3TextConfig())
    assert length_matters_of(rotary(rope_type="dynamic", factor=2.0))
    halves = [1.0] * 48
    long = {"rope_type": "longrope", "long_factor": halves, "short_factor": halves, "rope_theta": 1e4}
    assert length_matters_of(
        Phi3Config(rope_parameters={**long, "original_max_position_embeddings": 4096}, pad_token_id=0)
    )
    by_layer = SimpleNamespace(
        rope_parameters={"full": {"rope_type": "dynamic"}, "sliding": {"rope_type": "default"}}
    )
    assert length_matters_of(SimpleNamespace(get_text_config=lambda: by_layer))
    before_version_5 = SimpleNamespace(rope_scaling={"type": "dynamic"})
    assert length_matters_of(SimpleNamespace(get_text_config=lambda: before_version_5))
    of_a_model_s_own_code = type("Config", (GPT2Config,), {"__module__": "transformers_modules.org.config"})
    assert length_matters_of(of_a_model_s_own_code())


def test_a_model_whose_length_matters_runs_on_the_whole_context(
    make_config: MakeConfig,
    settings: dict[str, Any],
    tmp_path: Path,
    shapes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("saecache.harvest.model.language_model.length_matters_of", lambda _: True)
    cache = open_cache(run(make_config(**settings), tmp_path / "cache").path)
    assert set(shapes) == {(cpu_block(CONTEXT), CONTEXT)}
    assert "forward_length" not in cache.provenance["conditions"]


def test_forwards_of_another_length_are_refused(
    make_config: MakeConfig, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a version that judges the model otherwise mixes rows of both."""
    config = make_config(**settings)
    stopped_while_reading(config, tmp_path / "cache")
    monkeypatch.setattr("saecache.harvest.model.language_model.length_matters_of", lambda _: True)
    with pytest.raises(UsageError, match="forward_length: longest sequence there, None here"):
        run(config, tmp_path / "cache")


def test_an_evaluation_leaves_out_padding_too(
    whole: ActivationCache, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel.load(str(settings["model"]), dtype="float32", device="cpu")
    hook, lengths = whole.hooks[0], []
    logits = LanguageModel.logits

    def noting(self: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return logits(self, ids)

    monkeypatch.setattr(LanguageModel, "logits", noting)
    sequences = choose_sequences(whole, "heldout", whole.num_rows("heldout"), 10**6, 0)

    def measure() -> Any:
        lengths.clear()
        spliced = [Spliced(name="half", hook=hook, reconstruct=lambda x: x / 2)]
        return measure_language_model(
            model, whole, spliced, sequences, split="heldout", logit_bytes=1, show_progress=False
        )["half"]

    cut = measure()
    longest = int((whole.tokens[:] >= 0).sum(axis=1).max())
    assert lengths[0] == 1 and max(lengths) <= longest + 1 < CONTEXT
    assert len(set(lengths[1:])) > 1
    monkeypatch.setattr(model, "length_matters", True)
    uncut = measure()
    assert set(lengths[1:]) == {CONTEXT}
    for figure in ("ce_clean", "ce_sae", "ce_zero", "kl_sae", "activation_mismatch"):
        assert getattr(cut, figure) == pytest.approx(getattr(uncut, figure), rel=1e-5, abs=1e-6)
    assert cut.num_tokens == uncut.num_tokens > 0
