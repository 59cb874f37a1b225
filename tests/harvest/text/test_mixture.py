"""Several data sets by weight, and data sets of token ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saecache.common.errors import UsageError
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest.model.files import locate_model
from saecache.harvest.model.tokenizer import load_tokenizer, tokenizer_sha256
from saecache.harvest.runner import run
from saecache.harvest.text.config import MixtureText
from saecache.harvest.text.sources import ModelSide, TextSource, open_source
from saecache.harvest.text.tokenizing import encode, packing_rule
from saecache.store import open_cache

from ..job.test_resume import digests, stopped_while_reading

MakeConfig = Callable[..., HarvestConfig]


def write_part(path: Path, name: str, documents: int) -> dict[str, Any]:
    path.write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(documents)))
    return {"kind": "files", "paths": str(path)}


def mixture(
    folder: Path, sizes: dict[str, int], weights: dict[str, float], ends: str = "continue"
) -> MixtureText:
    parts = [
        {"weight": weights[name], "text": write_part(folder / f"{name}.jsonl", name, size)}
        for name, size in sizes.items()
    ]
    return MixtureText.model_validate({"parts": parts, "when_one_ends": ends})


def contents(source: TextSource, start: int = 0) -> list[tuple[int, str]]:
    return [(number, str(content)) for number, content in source.documents(start)]


def test_every_document_once_in_its_order(tmp_path: Path) -> None:
    source = open_source(mixture(tmp_path, {"a": 300, "b": 100}, {"a": 3, "b": 1}), seed=4)
    found = [text for _, text in contents(source)]
    assert [text for text in found if text[0] == "a"] == [f"a {i}" for i in range(300)]
    assert [text for text in found if text[0] == "b"] == [f"b {i}" for i in range(100)]
    share = np.mean([text[0] == "a" for text in found[:200]])
    assert abs(share - 0.75) < 0.1
    assert found[:8] == [
        "b 0",
        "b 1",
        "a 0",
        "a 1",
        "b 2",
        "a 2",
        "a 3",
        "a 4",
    ]  # pinned


@pytest.mark.parametrize("ends", ["continue", "stop"])
def test_documents_begin_anywhere(tmp_path: Path, ends: str) -> None:
    source = open_source(mixture(tmp_path, {"a": 5, "b": 60}, {"a": 1, "b": 1}, ends), seed=1)
    whole = contents(source)
    numbers = [number for number, _ in whole]
    assert numbers == sorted(set(numbers))
    for start in (0, 1, 5, 7, 20, numbers[-1], numbers[-1] + 1, numbers[-1] + 300):
        assert contents(source, start) == [each for each in whole if each[0] >= start]
    assert len(whole) == 65 if ends == "continue" else len(whole) < 30
    last = source.num_documents()
    assert last is not None
    assert contents(source, last) == []
    assert numbers[-1] < last <= numbers[-1] + (1 if ends == "continue" else 8)


def test_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    config = mixture(tmp_path, {"a": 50, "b": 50}, {"a": 1, "b": 1})
    assert contents(open_source(config, seed=1)) == contents(open_source(config, seed=1))
    assert contents(open_source(config, seed=1)) != contents(open_source(config, seed=2))
    doubled = mixture(tmp_path, {"a": 50, "b": 50}, {"a": 2, "b": 2})
    assert contents(open_source(doubled, seed=1)) == contents(open_source(config, seed=1))


def test_identity_names_parts_weights_and_the_end(tmp_path: Path) -> None:
    config = mixture(tmp_path, {"a": 5, "b": 5}, {"a": 1, "b": 2})
    identity = open_source(config).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert [part["weight"] for part in identity["parts"]] == [1, 2]
    others = [
        mixture(tmp_path, {"a": 5, "b": 5}, {"a": 1, "b": 1}),
        mixture(tmp_path, {"b": 5, "a": 5}, {"a": 1, "b": 2}),
        mixture(tmp_path, {"a": 5, "b": 5}, {"a": 1, "b": 2}, "stop"),
        mixture(tmp_path, {"a": 5, "b": 6}, {"a": 1, "b": 2}),
    ]
    for other in others:
        assert open_source(other).identity() != identity


def test_weights_of_tokens(make_config: MakeConfig, tmp_path: Path) -> None:
    """Documents of 2 and of 20 words: by tokens, the short ones are drawn more often."""
    config = make_config("llama", tokens={"context": 16})
    tokenizer, sha256 = tokenizer_of(config)
    for name, words in (("short", 2), ("long", 20)):
        lines = (json.dumps({"text": f"{name} " * words + str(i)}) + "\n" for i in range(4000))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    parts = [
        {"weight": weight, "text": {"kind": "files", "paths": str(tmp_path / f"{name}.jsonl")}}
        for name, weight in (("short", 1), ("long", 3))
    ]
    text = MixtureText.model_validate({"parts": parts, "by": "tokens"})
    rule = packing_rule(config.tokens, tokenizer, as_it_is=False)
    source = open_source(text, model=ModelSide(tokenizer, sha256, 300, rule), seed=1)
    found = contents(source)[:3000]
    tokens = np.array(
        [len(ids) + (rule.separator_id is not None) for ids in encode(tokenizer, [t for _, t in found])]
    )
    short = np.array([text.startswith("short") for _, text in found])
    assert tokens[short].sum() / tokens.sum() == pytest.approx(0.25, abs=0.02)
    assert short.mean() > 0.6
    assert contents(source, found[1000][0])[:5] == found[1000:1005]
    identity = source.identity()
    assert identity["by"] == "tokens"
    lengths = [part["tokens_per_document"] for part in identity["parts"]]
    assert lengths[0] < lengths[1] / 4
    assert str(source).endswith("of the tokens") and str(source).startswith("25%")
    pinned = {**identity, "parts": [{**part, "tokens_per_document": 7.0} for part in identity["parts"]]}
    again = open_source(text, pinned, model=ModelSide(tokenizer, sha256, 300, rule), seed=1)
    assert [part["tokens_per_document"] for part in again.identity()["parts"]] == [
        7.0,
        7.0,
    ]  # not measured anew
    with pytest.raises(UsageError, match="needs the tokenizer"):
        open_source(text)


def write_ids(path: Path, documents: list[list[int]], column: str = "input_ids") -> dict[str, Any]:
    pq.write_table(pa.table({column: pa.array(documents, pa.list_(pa.int64()))}), path)
    return {"kind": "files", "paths": str(path)}


def tokenizer_of(config: HarvestConfig) -> tuple[Any, str]:
    files = locate_model(config.model.name)
    tokenizer = load_tokenizer(files)
    return tokenizer, tokenizer_sha256(files, tokenizer)


def test_token_ids_are_used_as_they_are(make_config: MakeConfig, tmp_path: Path) -> None:
    """The same rows as from the text, when the ids are what the tokenizer gives."""
    config = make_config("llama", heldout_fraction=0, tokens={"context": 16, "packing": "per_document"})
    tokenizer, sha256 = tokenizer_of(config)
    texts = [f"The cache holds rows {i}" for i in range(50)]
    write_part(tmp_path / "text.jsonl", "x", 0)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "text.jsonl").write_text(lines)
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    ids = [[bos, *found.tolist()] for found in encode(tokenizer, texts)]
    if pad is not None and pad not in (bos, tokenizer.eos_token_id):
        ids[0] += [pad] * 3
    text = {**write_ids(tmp_path / "ids.parquet", ids), "pretokenized": {"tokenizer": sha256}}
    of_ids = open_cache(run(_with_text(config, text), tmp_path / "ids").path)
    plain = {"kind": "files", "paths": str(tmp_path / "text.jsonl")}
    of_text = open_cache(run(_with_text(config, plain), tmp_path / "plain").path)
    assert (of_ids.tokens[:] == of_text.tokens[:]).all()
    assert of_ids.manifest.counts == of_text.manifest.counts
    assert (of_ids.token_index("train")[:] == of_text.token_index("train")[:]).all()
    assert of_ids.manifest.identity["text"]["pretokenized"] == {"tokenizer": sha256}


def test_packed_token_ids_get_nothing_added(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("llama", heldout_fraction=0, num_tokens=160)
    tokenizer, _ = tokenizer_of(config)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    chunk = [bos, *range(20, 27), eos, bos, *range(30, 36)]
    text = {**write_ids(tmp_path / "ids.parquet", [chunk] * 10), "pretokenized": {"tokenizer": "unknown"}}
    result = run(_with_text(config, text), tmp_path / "cache")
    cache = open_cache(result.path)
    assert cache.tokens[:].tolist() == [chunk] * 10
    assert (result.manifest.counts["excluded_bos"], result.manifest.counts["excluded_separator"]) == (20, 10)
    assert len(cache) == 160 - 30


def _with_text(config: HarvestConfig, text: dict[str, Any]) -> HarvestConfig:
    return HarvestConfig.model_validate(config.model_dump() | {"text": text})


@pytest.mark.parametrize(
    ("documents", "settings", "match"),
    [
        ([[1, 2], [3, 999]], {}, r"row 1: token id 999 is not in the model's vocabulary of 300"),
        ([[1, -2]], {}, "token id -2 is not in"),
        (
            [[1]],
            {"tokenizer": "0" * 64},
            r"tokenizer=0{64}, but the model's tokenizer has sha256 [0-9a-f]{64}",
        ),
        ([[1]], {"column": "tokens"}, r"no column 'tokens'; it has: input_ids. Set text.pretokenized.column"),
    ],
)
def test_wrong_token_ids(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    documents: list[list[int]],
    settings: dict[str, str],
    match: str,
) -> None:
    monkeypatch.setattr(LanguageModel, "from_files", None)
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps({"input_ids": each}) + "\n" for each in documents))
    text = {
        "kind": "files",
        "paths": str(tmp_path / "ids.jsonl"),
        "pretokenized": {"tokenizer": "unknown", **settings},
    }
    match = match.replace("row 1", r"ids\.jsonl:2")
    with pytest.raises(UsageError, match=match):
        run(_with_text(make_config(), text), tmp_path / "cache")


def test_values_that_are_no_ids(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "ids.jsonl").write_text('{"input_ids": "text"}\n')
    text = {"kind": "files", "paths": str(tmp_path), "pretokenized": {"tokenizer": "unknown"}}
    with pytest.raises(UsageError, match=r"ids\.jsonl:1: column 'input_ids' holds str, expected a list of"):
        run(_with_text(make_config(), text), tmp_path / "cache")


def test_an_interrupted_mixture_goes_on(make_config: MakeConfig, text_folder: Path, tmp_path: Path) -> None:
    """Of text and token ids, across the end of one part."""
    ids = write_ids(tmp_path / "ids.parquet", [list(range(20, 60))] * 8)
    text = {
        "kind": "mixture",
        "parts": [
            {"weight": 1, "text": {**ids, "pretokenized": {"tokenizer": "unknown"}}},
            {"weight": 2, "text": {"kind": "files", "paths": str(text_folder)}},
        ],
    }
    config = make_config(text=text, commit_seconds=0, num_tokens=3000)
    whole = run(config, tmp_path / "whole")
    stopped_while_reading(config, tmp_path / "cut")
    run(config, tmp_path / "cut")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert whole.manifest.counts["documents"] > 20
    longer = config.model_copy(update={"num_tokens": 4000})
    extended = run(longer, tmp_path / "longer", extend=tmp_path / "whole")
    assert digests(Path(extended.path)) == digests(Path(run(longer, tmp_path / "once").path))
