"""Folders of latents as an evaluation writes them: the same bytes however rows are read, held-out text."""

from pathlib import Path

import numpy as np
import torch

from saecache.evaluate import read_latents, run
from saecache.store import CacheWriter, StorageConfig, open_cache
from saecache.train.variants.topk import TopK

from ..conftest import HOOK, WIDTH, make_sae


def folders(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()
    }


def measure(run_dir: Path, cache, out: Path, unembedding, **settings):
    return run([run_dir], cache, out=out / "r.json", unembedding=unembedding, show_progress=False, **settings)


def test_blocks_of_rows_make_no_difference(run_dir, cache, unembedding, tmp_path) -> None:
    whole = measure(run_dir, cache, tmp_path / "a", unembedding)
    parts = measure(run_dir, cache, tmp_path / "b", unembedding, rows_per_block=37)
    assert folders(tmp_path / "a" / "r.latents") == folders(tmp_path / "b" / "r.latents")
    assert [sae.latents for sae in whole.saes] == [sae.latents for sae in parts.saes]
    assert [sae.latents_dir for sae in whole.saes] == [f"r.latents/{sae.name}" for sae in whole.saes]
    other = measure(run_dir, cache, tmp_path / "c", unembedding, seed=1)
    assert other.saes[0].latents_dir == whole.saes[0].latents_dir
    assert folders(tmp_path / "a" / "r.latents") != folders(tmp_path / "c" / "r.latents")


def test_only_held_out_documents_are_shown(run_dir, cache, unembedding, tmp_path) -> None:
    results = measure(run_dir, cache, tmp_path, unembedding)
    trained = set(cache.locate(np.arange(len(cache)))[2].tolist())
    for sae in results.saes:
        latents = read_latents(tmp_path / sae.latents_dir)
        assert not trained & set(latents.passage_document.tolist())
        assert latents.info.rows == {"heldout": cache.num_rows("heldout")}
        assert latents.fires.sum() == round(sae.codes.l0 * latents.info.num_rows)


def test_training_rows_are_for_contexts_alone(run_dir, cache, unembedding, tmp_path) -> None:
    plain = measure(run_dir, cache, tmp_path / "a", unembedding)
    more = measure(run_dir, cache, tmp_path / "b", unembedding, training_rows=500)
    for sae, other in zip(plain.saes, more.saes, strict=True):
        assert sae.model_copy(update={"latents": []}) == other.model_copy(update={"latents": []})
        latents, larger = (read_latents(tmp_path / name / "r.latents" / sae.name) for name in ("a", "b"))
        assert 300 < larger.info.rows["train"] < 700
        assert larger.info.num_rows == latents.info.num_rows + larger.info.rows["train"]
        assert (larger.fires >= latents.fires).all()


def test_the_rule_of_training_and_what_is_not_wanted(run_dir, cache, unembedding, tmp_path) -> None:
    batch = measure(run_dir, cache, tmp_path / "a", unembedding, rule="batch", batch_rows=64)
    sae = next(sae for sae in batch.saes if sae.kind == "batch_topk")
    latents = read_latents(tmp_path / "a" / sae.latents_dir)
    assert latents.info.num_rows == sae.rows
    assert latents.fires.sum() == round(sae.codes.l0 * sae.rows)
    none = measure(run_dir, cache, tmp_path / "b", unembedding, all_latents=False)
    assert [sae.latents_dir for sae in none.saes] == [None] * 3
    assert all(sae.latents for sae in none.saes)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["r.json"]


def test_rows_without_text_have_no_folder(tmp_path) -> None:
    with CacheWriter(
        tmp_path / "cache",
        hooks={HOOK: WIDTH},
        identity={"source": "numbers"},
        heldout_fraction=0.3,
        storage=StorageConfig(chunk_rows=64),
    ) as writer:
        writer.write_rows({HOOK: torch.randn(600, WIDTH)})
    cache = open_cache(tmp_path / "cache")
    make_sae(cache, "topk", TopK(k=4)).save(tmp_path / "run" / "topk" / "sae")
    results = run([tmp_path / "run"], cache, show_progress=False)
    assert results.saes[0].latents_dir is None
    assert not (tmp_path / "run" / "results.latents").exists()
