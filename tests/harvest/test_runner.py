"""The whole of a harvest: the rows it stores, what does not change them, and how it ends."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import saecache
from saecache.common.errors import BadActivationError, SaecacheError, UsageError
from saecache.harvest import HarvestConfig, LanguageModel, load_model_of
from saecache.harvest.job.destination import default_path
from saecache.harvest.runner import run
from saecache.store import ActivationCache, open_cache
from saecache.store.info import read_provenance

MakeConfig = Callable[..., HarvestConfig]


@pytest.fixture(scope="module")
def usual(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """The harvest of the usual settings. Read only."""
    return open_cache(run(make_config(), tmp_path_factory.mktemp("usual") / "cache").path)


def digests(cache: Path) -> dict[str, str]:
    """sha256 of every file but the provenance, which holds times."""
    files = [p for p in cache.rglob("*") if p.is_file() and p.parts[len(cache.parts)] != "provenance"]
    return {
        p.relative_to(cache).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)
    }


def expected_rows(cache: ActivationCache, hook: str, split: str, model: LanguageModel) -> torch.Tensor:
    """Rows of a split, computed again from the stored tokens and where each row says it comes from."""
    sequence, position, _ = cache.locate(np.arange(cache.num_rows(split)), split)
    whole = model.activations(torch.from_numpy(cache.tokens[:]), [hook])[hook]
    return whole[torch.from_numpy(sequence), torch.from_numpy(position)]


@pytest.fixture(scope="module")
def neox(model_folder: Callable[[str], Path]) -> LanguageModel:
    return LanguageModel.load(str(model_folder("neox")), dtype="float32", device="cpu")


@pytest.mark.parametrize("packing", ["packed", "per_document"])
def test_rows_are_the_model_s_activations(
    make_config: MakeConfig, tmp_path: Path, neox: LanguageModel, packing: str
) -> None:
    exact = {"dtype": "float32", "normalization": "none", "chunk_rows": 64, "shard_bytes": 1 << 15}
    config = make_config(storage=exact, tokens={"context": 16, "packing": packing}, num_tokens=500)
    result = run(config, tmp_path / "cache")
    cache = open_cache(result.path)
    assert not result.reused
    assert len(cache) + cache.num_rows("heldout") == result.manifest.counts["tokens"] - sum(
        result.manifest.counts[f"excluded_{why}"] for why in ("bos", "separator", "sink")
    )
    for hook in config.hooks:
        for split in ("train", "heldout"):
            rows = cache.rows(hook, np.arange(cache.num_rows(split)), split)
            torch.testing.assert_close(rows, expected_rows(cache, hook, split, neox), rtol=1e-5, atol=1e-5)


def test_no_row_is_bos_separator_or_padding(usual: ActivationCache) -> None:
    cache = usual
    counts = cache.manifest.counts
    token = np.concatenate([cache.token_index(split)[:] for split in ("train", "heldout")]).astype(np.int64)
    documents, ids = cache.documents[:].reshape(-1), cache.tokens[:].reshape(-1)
    assert (documents[token] >= 0).all()
    assert not (token % cache.context == 0).any()  # BOS stands there
    assert counts["excluded_bos"] == cache.manifest.sequences
    assert counts["documents"] == len(set(documents[documents >= 0]))
    assert counts["excluded_separator"] >= counts["documents"] - 1
    assert counts["padding"] == (documents < 0).sum() == (ids < 0).sum()
    ends = np.flatnonzero(np.diff(documents) > 0)
    in_sequence = ends[(ends + 1) % cache.context != 0]  # where two documents meet there is a separator
    assert len(in_sequence) and (ids[in_sequence] == 0).all() and not set(in_sequence) & set(token)


def test_exclusions_can_be_switched_off(make_config: MakeConfig, tmp_path: Path) -> None:
    selection = {"exclude_bos": False, "exclude_separator": False}
    result = run(make_config(selection=selection), tmp_path / "cache")
    counts = result.manifest.counts
    assert result.manifest.train_rows + result.manifest.heldout_rows == counts["tokens"]
    assert counts["excluded_bos"] == counts["excluded_separator"] == 0


def test_heldout_is_by_document(usual: ActivationCache) -> None:
    _, _, train = usual.locate(np.arange(len(usual)))
    _, _, heldout = usual.locate(np.arange(usual.num_rows("heldout")), "heldout")
    assert set(train) and set(heldout)
    assert not set(train) & set(heldout)


@pytest.mark.parametrize("settings", [{}, {"selection": {"sink_ratio": 1.5}, "tokens": {"context": 5}}])
def test_batch_size_changes_nothing(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, object]
) -> None:
    results = {
        size: run(make_config(batch_size=size, **settings), tmp_path / str(size))
        for size in (1, 3, 40, "auto")
    }
    reference = digests(results[1].path)
    for result in results.values():
        assert digests(result.path) == reference
        assert result.manifest.fingerprint == results[1].manifest.fingerprint


def test_the_order_of_hooks_changes_nothing(
    make_config: MakeConfig, tmp_path: Path, usual: ActivationCache
) -> None:
    other = run(make_config(hooks=["mlp_out.2", "resid_post.1"]), tmp_path / "other")
    assert digests(other.path) == digests(usual.path)


def test_a_star_is_every_block(make_config: MakeConfig, tmp_path: Path) -> None:
    every = [f"mlp_out.{block}" for block in range(4)]
    pattern = make_config(hooks=["mlp_out.*", "mlp_out.1", "resid_post.0"], num_tokens=200)
    found = run(pattern, tmp_path / "pattern").manifest
    assert list(found.hooks) == [*every, "resid_post.0"]
    again = make_config(hooks=[*every, "resid_post.0"], num_tokens=200)
    assert run(again, tmp_path / "pattern").manifest == found  # it is the same cache


def test_sinks_are_judged_by_the_first_block(
    make_config: MakeConfig, tmp_path: Path, usual: ActivationCache
) -> None:
    whole = usual
    ratio = 1.3
    cut = open_cache(run(make_config(selection={"sink_ratio": ratio}), tmp_path / "cut").path)
    medians = read_provenance(cut.path)["median_norms"]
    keep = np.ones(len(whole), dtype=bool)
    for hook in whole.hooks:  # a sink at one hook is dropped from all
        raw = whole.rows(hook, np.arange(len(whole)), normalization="none")
        norms = (raw - raw.mean(dim=1, keepdim=True)).norm(dim=1).numpy()
        keep &= norms <= ratio * medians[hook]
    assert 0 < keep.sum() < len(whole)
    assert set(cut.token_index()[:]) == set(whole.token_index()[:][keep])
    dropped = len(whole) + whole.num_rows("heldout") - len(cut) - cut.num_rows("heldout")
    assert cut.manifest.counts["excluded_sink"] == dropped


def test_settings_may_be_a_mapping(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = make_config().model_dump(mode="json")
    assert run(settings, tmp_path / "cache").manifest == run(make_config(), tmp_path / "cache").manifest
    with pytest.raises(UsageError, match="num_token: unknown key"):
        run(settings | {"num_token": 2}, tmp_path / "cache")
    with pytest.raises(UsageError, match="config is not a valid HarvestConfig"):
        run("h.yaml", tmp_path / "cache")  # type: ignore[arg-type]


def test_a_finished_cache_is_left_alone(make_config: MakeConfig, usual: ActivationCache) -> None:
    before = digests(usual.path)
    again = saecache.harvest(make_config(batch_size=1, commit_seconds=0.0), usual.path)
    assert again.reused
    assert again.manifest == usual.manifest
    assert digests(usual.path) == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 5}, r"seed: 0 there, 5 here"),
        ({"num_tokens": 999}, r"num_tokens: 1000 there, 999 here"),
        ({"hooks": ["resid_post.1"]}, r"hooks\.mlp_out\.2: 32 there, \(nothing\) here"),
        ({"tokens": {"context": 8}}, r"context: 16 there, 8 here"),
        ({"selection": {"exclude_bos": False}}, r"selection\.exclude_bos: True there, False here"),
        ({"model": "gpt2"}, r"model\.name: 'tiny-neox' there, 'tiny-gpt2' here"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_harvest_s_output_is_refused(
    make_config: MakeConfig,
    usual: ActivationCache,
    unfinished: Path,
    change: dict[str, object],
    line: str,
    finished: bool,
) -> None:
    path = usual.path if finished else unfinished
    before = digests(path)
    with pytest.raises(UsageError, match=line):
        run(make_config(**change), path)
    assert digests(path) == before


@pytest.fixture(scope="module")
def unfinished(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual harvest, interrupted. Read only."""
    path = tmp_path_factory.mktemp("unfinished") / "cache"
    with pytest.raises(KeyboardInterrupt):
        run_interrupted(make_config(), path, after_batches=1)
    return path


def run_interrupted(config: HarvestConfig, path: Path, after_batches: int) -> None:
    """A run that is stopped by Ctrl-C while the model works on a certain batch."""
    from saecache.harvest.job import reading

    class Stopping(reading.ActivationReader):
        batches = 0

        def rows(self, *arguments):
            Stopping.batches += 1
            if Stopping.batches > after_batches:
                raise KeyboardInterrupt
            return super().rows(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "ActivationReader", Stopping)
        run(config, path)


@pytest.mark.parametrize(
    ("before", "after_batches", "then"), [(32, 0, 32), (32, 1, 64), (32, 5, 1), ("auto", 1, "auto")]
)
def test_interrupted_and_continued_is_the_same(
    make_config: MakeConfig,
    tmp_path: Path,
    before: int | str,
    after_batches: int,
    then: int | str,
    with_sinks: ActivationCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run_interrupted(make_config(**WITH_SINKS, batch_size=before), path, after_batches)
    capsys.readouterr()
    result = run(make_config(**WITH_SINKS, batch_size=then), path)
    assert not result.reused
    assert digests(result.path) == digests(with_sinks.path)
    if after_batches and before == 32:
        assert f"continuing after {after_batches * 32 * 16:,} tokens" in capsys.readouterr().err


WITH_SINKS = {"selection": {"sink_ratio": 1.6}, "num_tokens": 5000}


@pytest.fixture(scope="module")
def with_sinks(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return open_cache(run(make_config(**WITH_SINKS), tmp_path_factory.mktemp("sinks") / "cache").path)


def test_text_that_runs_out(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(make_config(num_tokens=10**6), tmp_path / "cache")
    counts = result.manifest.counts
    assert "warning: the text ended after" in capsys.readouterr().err
    assert counts["tokens_missing"] == 10**6 - counts["tokens"] > 0
    documents = open_cache(result.path).documents[:]
    assert documents.max() == 59 and (np.diff(documents[documents >= 0]) >= 0).all()  # nothing twice


def test_less_text_than_one_sequence(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("few words")
    config = make_config(text={"kind": "files", "paths": str(tmp_path / "a.txt")}, heldout_fraction=0.0)
    result = run(config, tmp_path / "cache")
    assert result.manifest.sequences == 1
    assert result.manifest.train_rows == result.manifest.counts["tokens"] - 2


def refused(config: HarvestConfig, out: Path, match: str, error: type[SaecacheError] = UsageError) -> None:
    existed = out.exists()
    with pytest.raises(error, match=match):
        run(config, out)
    assert out.exists() == existed


def test_bad_input_is_told_and_leaves_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    refused(make_config(hooks=["resid_post.4"]), out, "4 blocks, numbered 0 to 3")
    refused(make_config(hooks=["resid_pots.1"]), out, "Did you mean")
    refused(make_config(hooks=["resid_pots.*"]), out, r"resid_pots.*Did you mean")
    refused(make_config(hooks=["gpt_neox.layers"]), out, "never fires")
    refused(make_config(tokens={"context": 65}), out, "longer than the 64 positions")
    refused(make_config(tokens={"context": 16, "min_document_tokens": 9999}), out, "not a single token")
    refused(make_config(num_tokens=10**12), out, "more than a manifest can list")
    large = {"shard_bytes": 1 << 33}
    refused(make_config(num_tokens=10**12, storage=large), out, "not enough disk space")
    refused(make_config(text={"kind": "files", "paths": str(tmp_path / "*.txt")}), out, "no file matches")
    refused(make_config(tmp_path / "none"), out, "no such folder")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    refused(make_config(text={"kind": "files", "paths": str(tmp_path)}), out, "no column 'text'")
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    refused(make_config(), out, "holds something else")
    assert [p.name for p in out.iterdir()] == ["letter.txt"]


def test_planned_bytes_are_shown_first(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(make_config(), tmp_path / "cache")
    shown = capsys.readouterr().err
    planned = int(shown.split("planned: ")[1].split("(")[1].split(" bytes")[0].replace(",", ""))
    stored = sum(file.size for file in result.manifest.files)
    assert stored <= planned < 3 * stored


@pytest.fixture
def spoiled(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], HarvestConfig]:
    """A harvest whose model gives NaN from the first use of a token on, or from a later forward on."""

    def make(first_bad_forward: int) -> HarvestConfig:
        calls = [0]
        honest = LanguageModel.read

        def read(self, ids, hooks, receive):
            calls[0] += 1

            def spoil(name: str, x: torch.Tensor) -> None:
                if calls[0] >= first_bad_forward and name == "mlp_out.2":
                    x = x.clone()
                    x[0, 7] = float("nan")
                receive(name, x)

            honest(self, ids, hooks, spoil)

        monkeypatch.setattr(LanguageModel, "read", read)
        return make_config(num_tokens=3000, batch_size=32)

    return make


def test_nan_at_once_leaves_nothing(spoiled: Callable[[int], HarvestConfig], tmp_path: Path) -> None:
    place = r"hook mlp_out\.2, document \d+, sequence 0, position 7: NaN"
    refused(spoiled(1), tmp_path / "cache", place, BadActivationError)


def test_nan_later_names_its_place(spoiled: Callable[[int], HarvestConfig], tmp_path: Path) -> None:
    with pytest.raises(BadActivationError, match=r"hook mlp_out\.2, document \d+, sequence 32, position 7"):
        run(spoiled(3), tmp_path / "cache")


def test_nothing_saved_leaves_nothing(spoiled: Callable[[int], HarvestConfig], tmp_path: Path) -> None:
    refused(spoiled(2), tmp_path / "cache", "position 7", BadActivationError)


def test_a_lost_source_keeps_what_was_done(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saecache.harvest.text.sources.files import FilesSource

    whole = run(make_config(num_tokens=3000), tmp_path / "whole")
    honest = FilesSource.documents

    def breaking(self, start=0):
        for document in honest(self, start):
            if document.number == 20:
                raise SaecacheError("connection lost; run the same command again")
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(FilesSource, "documents", breaking)
        with pytest.raises(SaecacheError, match="connection lost"):
            run(make_config(num_tokens=3000), tmp_path / "cut")
    result = run(make_config(num_tokens=3000), tmp_path / "cut")
    assert digests(result.path) == digests(whole.path)


def test_out_of_memory_says_what_to_lower(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saecache.harvest.job import phases, reading

    def rows(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(reading.ActivationReader, "rows", rows)
    monkeypatch.setattr(phases, "measure_first_block", lambda *_: {})
    refused(make_config(), tmp_path / "cache", "lower it", SaecacheError)


def test_identity_has_no_place_or_time(
    make_config: MakeConfig, tmp_path: Path, model_folder: Callable[[str], Path], usual: ActivationCache
) -> None:
    moved = shutil.copytree(model_folder("neox"), tmp_path / "elsewhere" / "tiny-neox")
    assert run(make_config(moved), tmp_path / "cache").manifest == usual.manifest
    identity = usual.manifest.identity
    assert str(tmp_path.parent) not in json.dumps(identity)
    assert identity.keys() >= {"model", "tokenizer", "text", "packing", "selection", "num_tokens"}
    assert identity["model"].keys() == {"name", "revision", "weights_sha256", "class", "dtype"}
    assert identity["model"]["class"] == "GPTNeoXForCausalLM"


def test_the_model_is_found_again_and_checked(
    make_config: MakeConfig, tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    folder = shutil.copytree(model_folder("neox"), tmp_path / "model")
    cache = open_cache(run(make_config(folder), tmp_path / "cache").path)
    model = load_model_of(cache)
    assert model.name == "model" and model.dtype == torch.float32
    folder.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="cannot be opened again"):
        load_model_of(cache)
    assert load_model_of(cache, name=str(tmp_path / "moved")).weights_sha256 == model.weights_sha256
    with pytest.raises(UsageError, match="is not the model of"):
        load_model_of(cache, name=str(model_folder("gpt2")))


def test_default_path_is_of_what_changes_the_cache(make_config: MakeConfig) -> None:
    path = default_path(make_config())
    assert path.parent == Path("caches") and path.name.startswith("tiny-neox-")
    assert default_path(make_config(batch_size=1, commit_seconds=3)) == path
    assert default_path(make_config(device_map="auto")) == path
    assert default_path(make_config(seed=1)) != path
    model = make_config().model.model_copy(update={"quantization": "8bit"})
    assert default_path(make_config().model_copy(update={"model": model})) != path


def test_default_paths_are_those_of_version_0_2() -> None:
    """So that an unfinished cache is found again."""
    settings = {
        "model": {"name": "org/model"},
        "text": {"kind": "hub", "dataset": "org/data"},
        "tokens": {"context": 128},
        "hooks": ["resid_post.3"],
        "num_tokens": 1000,
    }
    assert default_path(HarvestConfig.model_validate(settings)) == Path("caches/model-c584010b")


def test_planned_bytes_of_short_documents_count_their_padding(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = {"context": 60, "packing": "per_document"}
    result = run(make_config(tokens=tokens, num_tokens=2000), tmp_path / "cache")
    shown = capsys.readouterr().err
    planned = int(shown.split("planned: ")[1].split("(")[1].split(" bytes")[0].replace(",", ""))
    stored = sum(file.size for file in result.manifest.files)
    assert 0.7 * stored <= planned < 2 * stored


def test_a_tokenizer_of_another_model_is_told(
    make_config: MakeConfig, tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    folder = shutil.copytree(model_folder("neox"), tmp_path / "small")
    settings = GPTNeoXConfig.from_pretrained(folder)
    settings.vocab_size = 100
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    refused(make_config(folder), tmp_path / "cache", "embeds only 100 tokens: they do not belong together")


def test_a_harvest_within_inference_mode_is_the_usual_one(
    make_config: MakeConfig, usual: ActivationCache, tmp_path: Path
) -> None:
    with torch.inference_mode():
        result = run(make_config(), tmp_path / "cache")
    assert digests(result.path) == digests(Path(usual.path))
