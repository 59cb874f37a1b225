"""More tokens of the same stream: the bytes of one longer harvest, whatever happens in between."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecache.harvest import HarvestConfig
from saecache.harvest.job import reading
from saecache.harvest.runner import run
from saecache.store import CacheWriter, UsageError, inspect_output, open_cache, slice_cache, verify_cache
from saecache.store.derived import replay
from saecache.store.writing.journal import read_journal

from ...killing import act_when

MakeConfig = Callable[..., HarvestConfig]
SINKS = {"selection": {"sink_ratio": 1.6}}


def digests(cache: Path) -> dict[str, str]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] != "provenance"]
    return {p.relative_to(cache).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences that went through the model while harvesting."""
    seen: list[int] = []

    class Counting(reading.ActivationReader):
        def rows(self, sequences: Any, keep: Any) -> Any:
            seen.append(len(sequences))
            return super().rows(sequences, keep)

    monkeypatch.setattr(reading, "ActivationReader", Counting)
    return seen


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, (1000, 1001, 3000)),  # 1000 tokens end inside a block of sequences
        (SINKS, (3000, 6000)),
        ({"tokens": {"context": 16, "packing": "per_document"}}, (700, 2500)),
        ({"tokens": {"context": 60}}, (2000, 6000)),
        ({}, (100, 2000)),  # less than one block: nothing is taken
        ({}, (5000, 10**6)),  # the text ends
    ],
    ids=["packed", "sinks", "per document", "long context", "tiny", "the text ends"],
)
def test_extended_is_one_longer_harvest(
    make_config: MakeConfig,
    tmp_path: Path,
    settings: dict[str, Any],
    tokens: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(make_config(num_tokens=tokens[-1], **settings), tmp_path / "whole")
    path = run(make_config(num_tokens=tokens[0], **settings), tmp_path / "0").path
    before = digests(path)
    seen = count_forwards(monkeypatch)
    for generation, num_tokens in enumerate(tokens[1:], 1):
        config = make_config(num_tokens=num_tokens, **settings, batch_size=32)
        path = run(config, tmp_path / str(generation), extend=path).path
    assert digests(path) == digests(whole.path)
    assert digests(tmp_path / "0") == before  # readers of the old generation see no change
    block = max(1, 512 // make_config(**settings).tokens.context)
    assert sum(seen) <= whole.manifest.sequences - open_cache(tmp_path / "0").manifest.sequences + 2 * block
    derived = open_cache(path).provenance["derived"]
    assert derived["by"] == "extend" and len(derived["from"]) == 1
    assert verify_cache(path).ok


def test_a_reader_of_the_old_generation_reads_on(make_config: MakeConfig, tmp_path: Path) -> None:
    old = open_cache(run(make_config(), tmp_path / "old").path)
    reading = old.batches("resid_post.1", 50)
    first = next(reading).clone()
    run(make_config(num_tokens=3000), tmp_path / "new", extend=old.path)
    rest = list(reading)
    assert len(first) + sum(map(len, rest)) == len(old)


def test_old_held_out_documents_stay_held_out(make_config: MakeConfig, tmp_path: Path) -> None:
    old = open_cache(run(make_config(), tmp_path / "old").path)
    new = open_cache(run(make_config(num_tokens=4000), tmp_path / "new", extend=old.path).path)
    for split in ("train", "heldout"):
        before, now = old.token_index(split)[:], new.token_index(split)[:]
        assert np.isin(before, now).all() and len(now) > len(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "num_tokens=1000 already; expected more than that, got 1000"),
        ({"num_tokens": 900}, "num_tokens=1000 already; expected more than that, got 900"),
        ({"num_tokens": 2000, "seed": 3}, r"only num_tokens may differ, but\n  - seed: 0 there, 3 here"),
        ({"num_tokens": 2000, "hooks": ["mlp_out.1"]}, "hooks.mlp_out.1: (nothing) there"),
    ],
)
def test_what_is_no_extension(
    make_config: MakeConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(make_config(), tmp_path / "old")
    with pytest.raises(UsageError) as caught:
        run(make_config(**change), tmp_path / "new", extend=tmp_path / "old")
    assert message.replace(r"\n", "\n") in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_caches_that_cannot_be_extended(make_config: MakeConfig, tmp_path: Path) -> None:
    old = open_cache(run(make_config(), tmp_path / "old").path)
    slice_cache(old, tmp_path / "slice", rows=10)
    with pytest.raises(UsageError, match="slice: "):
        run(make_config(num_tokens=2000), tmp_path / "new", extend=tmp_path / "slice")
    with pytest.raises(UsageError, match="no cache at"):
        run(make_config(num_tokens=2000), tmp_path / "new", extend=tmp_path / "none")


def test_more_tokens_into_the_same_folder_are_told_how(make_config: MakeConfig, tmp_path: Path) -> None:
    run(make_config(), tmp_path / "old")
    with pytest.raises(UsageError, match=r"another --out and --extend .*old"):
        run(make_config(num_tokens=2000), tmp_path / "old")


def test_text_that_has_changed_is_noticed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that cuts differently but has the same files: only the sequences tell."""
    old = run(make_config(), tmp_path / "old").path
    from saecache.harvest.job import extend

    original = extend.token_batches

    def shifted(*arguments: Any) -> Any:
        for batch in original(*arguments):
            batch.sequences.ids[3, 5] += 1
            yield batch

    monkeypatch.setattr(extend, "token_batches", shifted)
    with pytest.raises(UsageError, match=r"sequence 3 of .*old is not what the text gives now"):
        run(make_config(num_tokens=2000), tmp_path / "new", extend=old)
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def long_config(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    folder = tmp_path_factory.mktemp("long")
    lines = (json.dumps({"text": f"document {i} says " + "so it goes, " * (i % 90)}) for i in range(200))
    (folder / "a.jsonl").write_text("\n".join(lines))
    text = {"kind": "files", "paths": str(folder)}
    return make_config(text=text, num_tokens=12_000, batch_size=32, commit_seconds=0.0, **SINKS)


def test_interrupted_while_it_copies(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_tokens=5000, **SINKS)
    base = run(make_config(num_tokens=3000, **SINKS), tmp_path / "base").path
    path = tmp_path / "extended"
    monkeypatch.setattr(replay, "COMMIT_BYTES", 1 << 12)
    monkeypatch.setattr(replay, "_BLOCK_BYTES", 1 << 12)
    original, calls = CacheWriter.write_records, 0

    def failing(*arguments: Any, **settings: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 20 == 0:
            raise KeyboardInterrupt
        original(*arguments, **settings)

    monkeypatch.setattr(CacheWriter, "write_records", failing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(config, path, extend=base)
    with pytest.raises(UsageError, match="begun with --extend"):
        run(config, path)
    monkeypatch.setattr(CacheWriter, "write_records", original)
    run(config, path, extend=base)
    assert digests(path) == digests(run(config, tmp_path / "whole").path)


def moments(path: Path) -> list[Callable[[], object]]:
    """While rows are copied, when the model runs, when the last arrays appear."""

    def progress() -> Any:
        journal = read_journal(path)
        return {} if journal is None else journal.progress

    return [
        lambda: (path / ".writing/spill/hook.0").exists() and "cursor" not in progress(),
        lambda: "cursor" in progress(),
        lambda: (path / "stats").exists(),
    ]


def run_killed(config: HarvestConfig, path: Path, base: Path, moment: int) -> None:
    act_when(moments(path)[moment], lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(config, path, extend=base)


def test_kill_9(long_config: HarvestConfig, tmp_path: Path) -> None:
    whole = run(long_config, tmp_path / "whole").path
    base = run(long_config.model_copy(update={"num_tokens": 7_000}), tmp_path / "base").path
    path = tmp_path / "extended"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["saecache.harvest.job.phases", "transformers.models.gpt_neox.modeling_gpt_neox"]
    )
    for moment in range(len(moments(path))):
        process = context.Process(target=run_killed, args=(long_config, path, base, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert inspect_output(path) == "incomplete"
    run(long_config, path, extend=base)
    assert digests(path) == digests(whole)
    assert verify_cache(path).ok
