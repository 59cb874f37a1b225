"""Writing: the same bytes whatever the batches, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.versions import package_version
from saecache.store import (
    BadActivationError,
    CacheWriter,
    IncompleteCacheError,
    StorageConfig,
    UsageError,
    durable,
    inspect_output,
    open_cache,
)
from saecache.store.writing import spill

HOOK = "h"


def writer_of(path: Path, **changes: Any) -> CacheWriter:
    storage = StorageConfig(chunk_rows=16, shard_bytes=4096, **changes.pop("storage", {}))
    settings = {"hooks": {HOOK: 6}, "context": 4, "identity": {"model": "m"}, "storage": storage} | changes
    return CacheWriter(path, **settings)


def sequences(count: int, value: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "ids": np.zeros((count, 4), np.int64),
        "documents": np.arange(count)[:, None].repeat(4, axis=1),
        "keep": np.ones((count, 4), np.bool_),
        "activations": {HOOK: (rng.normal(size=(count * 4, 6)) * value).astype(np.float32)},
    }


@pytest.mark.parametrize(
    ("batch", "commit_every", "settings"),
    [
        (1, None, {}),
        (60, None, {}),
        (7, 2, {"planned_sequences": 20_000}),
        (13, 1, {"planned_sequences": 1}),
    ],
)
def test_bytes_depend_on_the_rows_only(
    tmp_path: Path,
    cache_path: Path,
    source: Any,
    write_cache: Callable[..., Any],
    contents: Callable[..., Any],
    batch: int,
    commit_every: int | None,
    settings: dict[str, Any],
) -> None:
    write_cache(tmp_path / "c", source, batch=batch, commit_every=commit_every, **settings)
    assert contents(tmp_path / "c") == contents(cache_path)


def test_bytes_do_not_depend_on_memory(
    tmp_path: Path,
    cache_path: Path,
    make_source: Callable[..., Any],
    write_cache: Callable[..., Any],
    contents: Callable[..., Any],
) -> None:
    source = make_source(sequences=300, hooks={"wide": 500})  # several blocks in 1 MiB, one in 64
    for name, memory in (("small", 1 << 20), ("large", 1 << 26)):
        write_cache(tmp_path / name, source, storage={"memory_bytes": memory})
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_the_order_of_hooks_does_not_matter(
    tmp_path: Path,
    cache_path: Path,
    source: Any,
    write_cache: Callable[..., Any],
    contents: Callable[..., Any],
) -> None:
    turned = type(source)(
        source.ids, source.documents, source.keep, dict(reversed(source.activations.items()))
    )
    write_cache(tmp_path / "c", turned)
    assert contents(tmp_path / "c") == contents(cache_path)


def test_another_seed_is_another_shuffle(
    tmp_path: Path, cache_path: Path, source: Any, write_cache: Callable[..., Any]
) -> None:
    write_cache(tmp_path / "c", source, seed=1)
    one, other = open_cache(cache_path), open_cache(tmp_path / "c")
    assert one.fingerprint != other.fingerprint
    assert not np.array_equal(one.token_index()[:100], other.token_index()[:100])


def test_torch_and_numpy_rows_of_any_type_give_the_same_bytes(
    tmp_path: Path, contents: Callable[..., Any]
) -> None:
    for name, convert in (
        ("numpy", lambda x: x),
        ("torch", torch.from_numpy),
        ("half", lambda x: torch.from_numpy(x).half()),
        ("numpy half", lambda x: x.astype(np.float16)),
    ):
        with writer_of(tmp_path / name) as writer:
            arguments = sequences(20)
            x = arguments["activations"][HOOK].astype(np.float16).astype(np.float32)
            writer.write_sequences(**(arguments | {"activations": {HOOK: convert(x)}}))
    expected = contents(tmp_path / "numpy")
    assert all(contents(tmp_path / name) == expected for name in ("torch", "half", "numpy half"))


def test_resuming_continues_where_the_last_commit_was(
    tmp_path: Path,
    cache_path: Path,
    source: Any,
    write_cache: Callable[..., Any],
    contents: Callable[..., Any],
) -> None:
    storage = StorageConfig(chunk_rows=64, shard_bytes=8192, memory_bytes=1 << 20)
    arguments = {
        "hooks": source.hooks,
        "context": source.context,
        "identity": {"source": "test"},
        "heldout_fraction": 0.2,
        "storage": storage,
    }
    writer = CacheWriter(tmp_path / "c", **arguments)
    assert (writer.sequences_done, writer.progress) == (0, {})
    batches = list(source.batches(10))
    for _, arrays in batches[:2]:
        writer.write_sequences(**arrays)
    writer.commit({"position": 20})
    writer.write_sequences(**batches[2][1])  # never committed
    writer.close()
    assert inspect_output(tmp_path / "c") == "incomplete"
    with pytest.raises(IncompleteCacheError, match="run the command that writes it again"):
        open_cache(tmp_path / "c")

    writer = CacheWriter(tmp_path / "c", **arguments)
    assert (writer.sequences_done, writer.progress) == (20, {"position": 20})
    writer.close()
    write_cache(tmp_path / "c", source, batch=9)
    assert contents(tmp_path / "c") == contents(cache_path)
    assert inspect_output(tmp_path / "c") == "complete"


def test_more_rows_after_a_finalize_that_stopped(
    tmp_path: Path,
    cache_path: Path,
    source: Any,
    write_cache: Callable[..., Any],
    contents: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a half-done finalize left does not end up in the longer cache."""

    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise StopError

    storage = StorageConfig(chunk_rows=64, shard_bytes=8192, memory_bytes=1 << 20)
    writer = CacheWriter(
        tmp_path / "c",
        hooks=source.hooks,
        context=source.context,
        identity={"source": "test"},
        heldout_fraction=0.2,
        storage=storage,
    )
    for _, arrays in list(source.batches(10))[:4]:
        writer.write_sequences(**arrays)
    with pytest.raises(StopError):
        writer.finalize(on_progress=stop)
    writer.close()
    write_cache(tmp_path / "c", source)
    assert contents(tmp_path / "c") == contents(cache_path)


def test_an_exception_in_the_block_closes_resumably(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writer_of(tmp_path / "c") as writer:
        writer.write_sequences(**sequences(5))
        writer.commit({"at": 5})
        raise KeyboardInterrupt
    with writer_of(tmp_path / "c") as writer:
        assert writer.sequences_done == 5
    assert len(open_cache(tmp_path / "c")) == 20


def test_nothing_is_left_behind_where_nothing_was_committed(tmp_path: Path) -> None:
    with pytest.raises(BadActivationError), writer_of(tmp_path / "new") as writer:
        writer.write_sequences(**sequences(5, value=np.nan))
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    writer_of(tmp_path / "empty").close()
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(UsageError, match="no training rows"), writer_of(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_bad_activations_are_located(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "c", hooks={"good": 6, "bad": 6})
    arguments = sequences(5)
    good = arguments["activations"][HOOK]
    arguments["keep"][1, 2] = False
    good = good[:-1]
    writer.write_sequences(**(arguments | {"activations": {"good": good, "bad": good}}))
    bad = good.copy()
    bad[9, 3], bad[9, 4] = np.nan, np.inf
    arguments["documents"] += 40
    with pytest.raises(
        BadActivationError, match=r"hook bad, document 42, sequence 7, position 2: 1 NaN and 1 Inf among 6"
    ):
        writer.write_sequences(**(arguments | {"activations": {"good": good, "bad": bad}}))
    with pytest.raises(UsageError, match="cannot go on, an error stopped it"):
        writer.commit()
    writer.close()


def test_overflow_is_told_from_nan(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "c", storage={"normalization": "none"})
    with pytest.raises(BadActivationError, match=r"too large for float16; .*float32"):
        writer.write_sequences(**sequences(5, value=1e6))
    writer.close()
    with writer_of(tmp_path / "c", storage={"normalization": "none", "dtype": "float32"}) as writer:
        writer.write_sequences(**sequences(5, value=1e6))


def test_another_identity_is_refused_with_the_differences(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writer_of(tmp_path / "c") as writer:
        writer.write_sequences(**sequences(5))
        writer.commit()
        raise RuntimeError
    with pytest.raises(UsageError) as refused:
        writer_of(tmp_path / "c", identity={"model": "other", "extra": 1}, seed=5)
    message = str(refused.value)
    for line in ("model: 'm' there, 'other' here", "seed: 0 there, 5 here", "extra: (nothing) there, 1 here"):
        assert line in message
    with writer_of(tmp_path / "c", storage={"memory_bytes": 1 << 21}) as writer:  # memory is not identity
        assert writer.sequences_done == 5


def test_folders_that_hold_something_else_are_refused(tmp_path: Path, cache_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else than a cache"):
        writer_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match="already holds a finished cache"):
        writer_of(cache_path)
    with pytest.raises(UsageError, match=r"is inside the cache .*: choose a folder outside it"):
        writer_of(cache_path / "sub" / "c")
    assert not (cache_path / "sub").exists()
    (tmp_path / "file").write_text("")
    assert inspect_output(tmp_path / "file") == "foreign"
    assert inspect_output(tmp_path / "none") == "absent"


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "c")
    with pytest.raises(UsageError, match="being written by another process"):
        writer_of(tmp_path / "c")
    writer.close()
    assert not (tmp_path / "c").exists()


def test_a_writer_in_another_process_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "c" / ".writing").mkdir(parents=True)
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, tmp_path / "c" / ".writing" / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin and other.stdout
        other.stdout.readline()  # it has the lock
        with pytest.raises(UsageError, match="being written by another process"):
            writer_of(tmp_path / "c")
        other.stdin.close()
    writer_of(tmp_path / "c").close()  # a lock dies with its process


def test_a_cache_that_another_process_finishes_just_now(
    tmp_path: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cache_path, tmp_path / "c")
    monkeypatch.setattr("saecache.store.writing.output.inspect_output", lambda path: "incomplete")
    with pytest.raises(UsageError, match="already holds a finished cache"):
        writer_of(tmp_path / "c")
    monkeypatch.undo()
    assert inspect_output(tmp_path / "c") == "complete"
    assert not (tmp_path / "c" / ".writing").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hooks": {}}, "at least one hook"),
        ({"hooks": {"a/b": 4}}, "hook name 'a/b'"),
        ({"hooks": {"..": 4}}, "hook name"),
        ({"hooks": {".writing": 4}}, "hook name"),
        ({"hooks": {"token": 4}}, "hook name 'token'"),
        ({"hooks": {"a..b": 4}}, "hook name"),
        ({"hooks": {"x" * 201: 4}}, "hook name"),
        ({"hooks": {"Mlp": 4, "mlp": 4}}, "more than upper and lower case"),
        ({"hooks": {"h": 0}}, "width 0"),
        ({"context": 0}, "context must be"),
        ({"heldout_fraction": 1.0}, "heldout_fraction"),
        ({"identity": {"seed": 3}}, "the writer adds these"),
        ({"identity": {"x": float("nan")}}, "plain JSON"),
        ({"identity": {"x": {1, 2}}}, "plain JSON"),
        ({"hooks": {"h": 1 << 22}, "storage": {}}, None),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    if message is None:
        with pytest.raises(UsageError, match="chunk_rows of at most 128"):
            CacheWriter(tmp_path / "c", hooks={"h": 1 << 22}, identity={})
    else:
        with pytest.raises(UsageError, match=message):
            writer_of(tmp_path / "c", **changes)
    assert not (tmp_path / "c").exists()


def test_bad_sequences_are_refused(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "c")
    good = sequences(5)
    x = good["activations"][HOOK]
    for change, message in (
        ({"ids": good["ids"][:, :3]}, r"ids: expected shape \(5, 4\)"),
        ({"documents": good["documents"][:4]}, "documents: expected shape"),
        ({"keep": good["keep"].astype(int)}, "keep: expected bool"),
        ({"ids": good["ids"] + 0.5}, "ids: expected integers"),
        ({"activations": {HOOK: x[:-1]}}, r"activations of h: expected shape \(20, 6\), got \(19, 6\)"),
        ({"activations": {}}, r"expected hooks \['h'\], got \[\]"),
        ({"activations": {HOOK: x, "more": x}}, "expected hooks"),
    ):
        with pytest.raises(UsageError, match=message):
            writer.write_sequences(**(good | change))
    writer.write_sequences(**good)  # none of that spoiled the writer
    with pytest.raises(UsageError, match="write_rows needs context=1"):
        writer.write_rows({HOOK: x})
    with pytest.raises(UsageError, match="counts"):
        writer.finalize(counts={"documents": -1})
    writer.finalize(counts={"documents": 5})
    with pytest.raises(UsageError, match="it is closed"):
        writer.write_sequences(**good)
    assert open_cache(tmp_path / "c").manifest.counts == {"documents": 5}


def test_rows_with_and_without_documents_do_not_mix(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "c", context=1)
    x = {HOOK: np.ones((3, 6), np.float32)}
    writer.write_rows(x)
    with pytest.raises(UsageError, match="begun with tokens: none; it cannot go on with: documents"):
        writer.write_rows(x, documents=[1, 2, 3])
    with pytest.raises(UsageError, match="expected 3 of them"):
        writer.write_rows(x, documents=[1, 2])
    writer.close()


def test_provenance_is_kept_apart(tmp_path: Path, contents: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        writer = writer_of(tmp_path / name, provenance={"who": name})
        writer.write_sequences(**sequences(5))
        writer.finalize(provenance={"tokens_per_second": len(name)})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    facts = open_cache(tmp_path / "b").provenance
    assert facts["who"] == "b" and facts["tokens_per_second"] == 1
    assert facts["software"]["torch"] == package_version("torch")
    assert "created" in facts


def test_progress_is_reported_up_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    writer = writer_of(tmp_path / "c")
    writer.write_sequences(**sequences(50))
    manifest = writer.finalize(on_progress=lambda done, total: seen.append((done, total)))
    total = sum(file.size for file in manifest.files)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_memory_of_the_caller_may_be_used_again(tmp_path: Path, contents: Callable[..., Any]) -> None:
    for name in ("fresh", "reused"):
        arguments = sequences(10)
        with writer_of(tmp_path / name) as writer:
            writer.write_sequences(**arguments)
            if name == "reused":
                for array in (arguments["ids"], arguments["documents"], arguments["activations"][HOOK]):
                    array[:] = 0
    assert contents(tmp_path / "fresh") == contents(tmp_path / "reused")


@pytest.mark.parametrize("moment", ["spill", "finalize"])
def test_a_full_disk_is_explained_and_resumable(
    tmp_path: Path,
    cache_path: Path,
    source: Any,
    write_cache: Callable[..., Any],
    contents: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    import errno

    from saecache.common.errors import DiskFullError
    from saecache.store import shard_file

    calls = 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        durable.write_all(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(*((spill, "write_all") if moment == "spill" else (shard_file, "append_early")), full)
        storage = StorageConfig(chunk_rows=64, shard_bytes=8192, memory_bytes=1 << 20)
        writer = CacheWriter(
            tmp_path / "c",
            hooks=source.hooks,
            context=source.context,
            identity={"source": "test"},
            heldout_fraction=0.2,
            storage=storage,
        )
        with pytest.raises(DiskFullError, match=r"disk ran full.*make room and run the same command again"):
            for _, arrays in source.batches(10):
                writer.write_sequences(**arrays)
                writer.commit()
            writer.finalize()
        assert not list(tmp_path.rglob("*.tmp"))
        writer.close()
    write_cache(tmp_path / "c", source)
    assert contents(tmp_path / "c") == contents(cache_path)


def test_a_damaged_journal_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writer_of(tmp_path / "c") as writer:
        writer.write_sequences(**sequences(5))
        writer.commit()
        raise RuntimeError
    journal = tmp_path / "c" / ".writing" / "journal.json"
    values = json.loads(journal.read_text())
    journal.write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(Exception, match="damaged or of another version"):
        writer_of(tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "seed: expected a whole number, got '0'"),
        ({"seed": 1.5}, "seed: expected a whole number, got 1.5"),
        ({"context": 4.0}, "context: expected a whole number, got 4.0"),
        ({"context": True}, "context: expected a whole number, got True"),
        ({"hooks": ["h"]}, r"hooks: expected a mapping \{name: width\}.* got \['h'\]"),
        ({"hooks": {"h": 6.0}}, "hooks: width of h: expected a whole number, got 6.0"),
        ({"hooks": {3: 6}}, "hooks: expected names as texts, got 3"),
        ({"identity": "mine"}, "identity: expected a mapping of facts.* got 'mine'"),
        ({"heldout_fraction": "0.1"}, r"heldout_fraction: expected a number in \[0, 1\), got '0.1'"),
    ],
)
def test_settings_of_another_kind_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        writer_of(tmp_path / "cache", **changes)
    assert not (tmp_path / "cache").exists()


def test_numbers_of_numpy_are_settings_as_those_of_python(tmp_path: Path) -> None:
    numbers = {"hooks": {HOOK: np.int64(6)}, "context": np.int64(4), "seed": np.int64(3)}
    with writer_of(tmp_path / "numpy", **numbers) as writer:
        writer.write_sequences(**sequences(8))
    with writer_of(tmp_path / "python", seed=3) as same:
        same.write_sequences(**sequences(8))
    assert writer.fingerprint == same.fingerprint


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        ({HOOK: [[1.0] * 6]}, r"activations of h: expected a numpy array or a torch tensor, got list"),
        (
            {HOOK: np.ma.masked_less(np.ones((2, 6), np.float32), 2)},
            "activations of h: a cache keeps no mask",
        ),
        (torch.ones(2, 6), r"activations: expected a mapping \{hook: rows\} of hooks \['h'\], got Tensor"),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, activations: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message), writer_of(tmp_path / "cache", context=1) as writer:
        writer.write_rows(activations)
