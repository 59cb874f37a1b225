"""``saecache interpret`` on a cache of the built-in model, with its tokenizer, and what it says."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from saecache.cli import app
from saecache.evaluate.results import read_results
from saecache.harvest.model.tokenizer import load_tokenizer_of
from saecache.store import open_cache

from .judge_server import Judge, saying

HOOK = "resid_post.3"
SMALL = [
    "windows.tokens=16", "windows.least=20", "windows.explain=10", "windows.score=10", "num_latents=4",
    "calibration={buckets: 2, explain: 4, score: 4}",
]  # fmt: skip


def saecache(*arguments: str | Path, settings: list[str] | None = None) -> Result:
    typed = list(map(str, arguments))
    for setting in settings or []:
        typed += ["--set", setting]
    return CliRunner().invoke(app, typed)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache and a measured run of the built-in model, made by commands."""
    folder = tmp_path_factory.mktemp("demo")
    steps = (
        ("harvest", "demo", "--out", folder / "cache"),
        ("train", "topk", "--cache", folder / "cache", "--out", folder / "run"),
        ("evaluate", folder / "run", "--cache", folder / "cache", "--no-model"),
    )
    settings = {
        "harvest": [
            f"hooks=[{HOOK}]", "num_tokens=24_000", "tokens.context=64", "tokens.max_document_tokens=300",
            "heldout_fraction=0.4", "device=cpu",
        ],
        "train": [
            "variants=[{kind: topk, k: 8}]", "num_latents=128", "batch_rows=512", "epochs=4",
            "optimizer.learning_rate=0.003", "log.heldout_every_steps=null", "device=cpu",
        ],
        "evaluate": ["num_latents=0"],
    }  # fmt: skip
    for words in steps:
        result = saecache(*words, settings=settings[words[0]])
        assert result.exit_code == 0, result.output
    return folder


def interpret(demo: Path, judge: Judge, *arguments: str | Path, settings: list[str] | None = None) -> Result:
    words = ["interpret", demo / "run", "--cache", demo / "cache", "--endpoint", judge.url]
    for setting in [*SMALL, "device=cpu", *(settings or [])]:
        words += ["--set", setting]
    return saecache(*words, "--model", "reader-1", *arguments)


@pytest.mark.slow
def test_the_whole_chain(demo: Path, judge: Judge, tmp_path: Path) -> None:
    """The text that the judge reads is that of the documents, and the answers get into results and table."""
    result = interpret(demo, judge)
    assert result.exit_code == 0, result.output
    found = read_results(demo / "run" / "results.json").saes[0].interpretation
    assert found is not None and len(found.latents) + len(found.skipped) == 4
    assert found.calibration is not None and len(found.calibration.buckets) == 2
    assert all((latent.explanation or "").startswith("one of [") for latent in found.latents)
    assert f"{len(judge.posts):,} calls" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "SAE", "judged", "skipped", "rare", "detection", "fuzzing", "calibration", "r", "unanswered",
    ]  # fmt: skip
    assert found.detection is not None and f"{found.detection.mean:.3f}" in lines[2]
    cache = open_cache(demo / "cache")
    tokenizer = load_tokenizer_of(cache)
    texts = [tokenizer.decode([i for i in ids if i >= 0], skip_special_tokens=True) for ids in cache.tokens]
    whole = "\n".join(texts)
    for request in judge.posts[:5]:
        for excerpt in re.findall(r"^Excerpt \d+: (.*)$", request.prompt, re.MULTILINE):
            plain = excerpt.replace("<<", "").replace(">>", "")
            if "> >" not in plain and "< <" not in plain and "\\" not in plain:
                assert plain in whole
    again = interpret(demo, judge, "--json")
    document = json.loads(again.stdout)
    assert document["calls_made"] == 0 and document["estimate"]["answered"] == len(judge.posts)
    assert document["interpretations"]["topk_k8"]["latents"][0]["index"] == found.latents[0].index


def test_a_dry_run_asks_nothing_and_needs_no_server(demo: Path, judge: Judge) -> None:
    price = "price={prompt_per_million: 2, completion_per_million: 8}"
    result = saecache(
        *("interpret", demo / "run", "--cache", demo / "cache", "--dry-run"),
        settings=[*SMALL, "device=cpu", price],
    )
    assert result.exit_code == 0, result.output
    assert "calls (" in result.stderr and "at the given prices" in result.stderr
    assert "[system]\nYou study one unit" in result.stdout and "<<" in result.stdout
    assert judge.requests == []
    words = ["interpret", demo / "run", "--cache", demo / "cache", "--dry-run", "--json"]
    document = json.loads(saecache(*words, settings=[*SMALL, "device=cpu", price]).stdout)
    assert document["sample"].strip() == result.stdout.strip() and document["calls_made"] == 0
    assert document["estimate"]["explanations"] > 0 and document["estimate"]["cost"] > 0


def test_prompts_and_answers_have_places_of_the_users_choice(
    demo: Path, judge: Judge, tmp_path: Path
) -> None:
    (tmp_path / "prompts").mkdir()
    own = "Speak like a pirate. End with EXPLANATION: ..."
    (tmp_path / "prompts" / "explain.system.j2").write_text(own)
    answers = tmp_path / "answers"
    result = interpret(
        demo,
        judge,
        "--prompts",
        tmp_path / "prompts",
        "--answers",
        answers,
        settings=["num_latents=1", "calibration=null"],
    )
    assert result.exit_code == 0, result.output
    assert judge.posts[0].body["messages"][0]["content"] == own
    assert len(list(answers.rglob("*.json"))) == len(judge.posts)


def test_what_was_not_answered_is_said(demo: Path, judge: Judge, tmp_path: Path) -> None:
    judge.always = lambda handler, request: (
        not request.asks_for_explanation and saying("yes")(handler, request)
    )
    result = interpret(
        demo, judge, "--answers", tmp_path, settings=["num_latents=1", "calibration=null", "fuzzing=none"]
    )
    assert result.exit_code == 0, result.output
    assert "topk_k8: no usable answer to 4 score calls; their windows count in no score" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--endpoint", "127.0.0.1:8000"], "no http or https URL"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "no judge answers at http://127.0.0.1:9.*Start the server"),
        (["--model", "gpt-0"], "has no model 'gpt-0'"),
        (["--set", "windows.least=1000000"], "no latent of SAE topk_k8 can be judged"),
        (["--set", "num_latent=3"], r"num_latent.*did you mean 'num_latents'"),
        (["--set", "max_calls=1"], "more than max_calls=1: allow it with --set max_calls="),
        (["--prompts", "nowhere"], "prompts=nowhere is no folder"),
        (["--results", "nowhere.json"], "no results at nowhere.json"),
        (["--config", "interpet"], "no recipe 'interpet'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    demo: Path, judge: Judge, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = interpret(demo, judge, "--answers", tmp_path / "answers", *arguments)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr
    assert "Traceback" not in result.stderr and judge.posts == []


def test_a_tokenizer_of_another_model_is_refused(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(demo / "cache")
    monkeypatch.setattr(
        "saecache.harvest.model.tokenizer.tokenizer_sha256", lambda files, tokenizer: "0" * 64
    )
    with pytest.raises(ValueError, match=r"the tokenizer in .* is not that of .*: expected sha256"):
        load_tokenizer_of(cache)
