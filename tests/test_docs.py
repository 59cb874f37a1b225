"""The README and the pages in docs/ are true: commands and Python run, figures are those of the scripts.

Shell blocks are typed line by line, in the order of the page, in a folder of its own. Recipes of large models
become the demo's model with a thousand tokens, ``s3://team`` becomes a folder used as a bucket, and the Hub a
local server.
"""

import ast
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import saecache
from saecache.cli import app
from saecache.common.errors import UsageError
from saecache.configs import load_config
from saecache.doctor import DoctorConfig
from saecache.evaluate import EvaluateConfig
from saecache.evaluate.judge import InterpretConfig
from saecache.evaluate.report.server import make_server
from saecache.harvest import HarvestConfig
from saecache.store.remote.places.failures import AccessError
from saecache.train import TrainConfig
from saecache.train.variants import VARIANTS
from tests.evaluate.judge.judge_server import Judge, serve

ROOT = Path(saecache.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CODE_LANGUAGES = {"bash", "python", "json", "yaml"}
# What a shell block may begin a line with besides.
OTHER_PROGRAMS = {"torchrun", "export", "make", "srun", "if", "pip"}

# Small enough for a second each; they come after the page's own settings.
SMALL = {
    "harvest": ["num_tokens=1_500", "batch_size=8", "tokens.context=64", "heldout_fraction=0.3"],
    "synthetic": [
        *("num_rows=2_000", "width=32", "coherence=0.6", "heldout_fraction=0.3"),
        "buckets=[{name: rare, num_features: 24, frequency: 0.05, scale: 1.0}]",
    ],
    "train": ["num_latents=192", "batch_rows=128", "steps=4", "log.heldout_every_steps=null"],
    "interpret": [
        *("num_latents=4", "windows={tokens: 4, least: 1, explain: 10, score: 10, per_prompt: 20}"),
        "calibration={buckets: 2, explain: 2, score: 2}",
    ],
    "doctor": [
        *("limit_seconds=600", "checks.operations=[[9, 40, 12, 3]]", "checks.screen_widths=[24]"),
        *("checks.training=[32, 96, 16]", "cpu.latents=[128]", "cpu.rows=64", "cpu.width=32", "cpu.k=4"),
        *("cpu.rounds=1", "cpu.cache_mib=1", "cpu.tokens=1000"),
    ],
}
DEMO_HOOKS = ("resid_post.3", "resid_post.2")  # in the place of blocks 6 and 8
MLP_HOOKS = ("mlp_in.3", "mlp_out.3")


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, without the indentation of a list's items."""
    found = [
        Block(name, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for indent, name, text in BLOCK.findall(page.read_text("utf-8"))
    ]
    return [block for block in found if language in (None, block.language)]


def lines(page: Path) -> list[list[str]]:
    """The lines of a page's shell blocks, as the shell would split them, without comments."""
    text = "\n".join(block.text for block in blocks(page, "bash")).replace("\\\n", " ")
    return [words for words in (shlex.split(line, comments=True) for line in text.splitlines()) if words]


def commands(page: Path) -> list[list[str]]:
    """What follows every ``saecache`` in the shell blocks of a page."""
    return [words[words.index("saecache") + 1 :] for words in lines(page) if "saecache" in words]


ALL = [(page, words) for page in PAGES for words in commands(page)]
COMMANDS = pytest.mark.parametrize(
    ("page", "words"), ALL, ids=[f"{page.name} {' '.join(words[:3])}" for page, words in ALL]
)
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# ---- what is written exists


@COMMANDS
def test_commands_of_the_pages_parse(page: Path, words: list[str]) -> None:
    command, rest = find_command(words)
    command.make_context("saecache", rest)


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words begin with, and what is left of them."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group) and words:
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    return command, list(words)


@COMMANDS
def test_recipes_and_settings_of_the_pages_exist(page: Path, words: list[str]) -> None:
    settings = [value for option, value in pairwise(words) if option == "--set"]
    settings = [re.sub(r"=\.\.\.$", "=1", re.sub(r"\$\w+", "1", setting)) for setting in settings]
    if words[0] == "harvest":
        load_config(HarvestConfig, words[1], settings, kinds=("harvest",))
    elif words[0] == "train":
        load_config(TrainConfig, words[1], settings, kinds=("train", "papers"))


def test_texts_of_the_guide_are_texts() -> None:
    found = [yaml.safe_load(block.text) for block in blocks(ROOT / "docs" / "guide.md", "yaml")]
    base = {
        "model": {"name": "builtin:demo"},
        "tokens": {"context": 8},
        "hooks": "resid_post.0",
        "num_tokens": 9,
    }
    kinds = [HarvestConfig.model_validate({**base, **each}).text.kind for each in found]
    assert kinds == ["files", "mixture"]


@EACH_PAGE
def test_inline_commands_and_settings_exist(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text("utf-8"))
    for span in re.findall(r"`([^`\n]+)`", prose):
        if span.startswith("saecache "):
            find_command([word for word in span.split()[1:3] if re.fullmatch("[a-z]+", word)])
        for setting in re.findall(r"--set ([\w.]+=\S+)", span):
            assert_valid_setting(setting.removesuffix("..."))


def assert_valid_setting(setting: str) -> None:
    """Of a harvest, a training run, an evaluation or an examination."""
    setting += "1" if setting.endswith("=") else ""
    refusals = []
    kinds = (
        (HarvestConfig, "demo", "harvest"),
        (TrainConfig, "topk", "train"),
        (EvaluateConfig, "demo", "evaluate"),
        (InterpretConfig, "default", "interpret"),
        (DoctorConfig, "default", "doctor"),
    )
    for model, recipe, kind in kinds:
        try:
            load_config(model, recipe, [setting], kinds=(kind,))
        except UsageError as error:
            refusals.append(str(error))
    assert len(refusals) < len(kinds), "\n".join(refusals)


@EACH_PAGE
def test_pages_that_are_linked_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@EACH_PAGE
def test_shell_blocks_are_shell_and_start_known_programs(page: Path) -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for block in blocks(page, "bash"):
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, capture_output=True)
    for words in lines(page):
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words
        elif not re.match(r"[A-Z_]+=", words[0]):
            assert words[0] in OTHER_PROGRAMS | {"saecache"}, words


@EACH_PAGE
def test_blocks_say_their_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in CODE_LANGUAGES | {""}, block.language
        assert block.language or "saecache " not in block.text.partition("try next")[0], block.text


def test_readme_takes_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
    assert (ROOT / "docs" / "report.png").stat().st_size < 300_000


# ---- what is written runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, and no place of this machine that a command would use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))
    monkeypatch.delenv("SAECACHE_TEAM", raising=False)
    (tmp_path / "bucket").mkdir()
    write_text(tmp_path / "text.jsonl", number=9)
    write_reviews(tmp_path / "reviews.jsonl")
    yield tmp_path


PAGES_THAT_RUN = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: page.name)
def test_shell_blocks_run(page: Path, folder: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(page)
    for words in lines(page):
        if words[0] == "export":
            for name, _, value in (word.partition("=") for word in words[1:]):
                if name == "SAECACHE_TEAM":
                    monkeypatch.setenv(name, value.replace("s3://team", bucket()))
        elif "saecache" in words:
            run_command(words[words.index("saecache") + 1 :])


def prepare(page: Path) -> None:
    """What a page takes for granted, made before its first command."""
    if page.name in ("export.md", "metrics.md"):
        run_command(["harvest", "demo", "--out", "caches/pythia"])
        run_command(["train", "topk", "--cache", "caches/pythia", "--out", "runs/pythia"])
    elif page.name == "guide.md":
        run_command(["harvest", "demo", "--out", "caches/pythia"])
        tune_demo_model(Path("models/tuned"))
    elif page.name == "cluster.md":
        run_command(["harvest", "demo", "--out", "s3://team/caches/pythia-160m"])
        for part in (0, 1):
            write_text(Path(f"part{part}.jsonl"), number=part)
            text = f"text={{kind: files, paths: [part{part}.jsonl]}}"
            run_command(["harvest", "demo", "--set", text, "--out", f"caches/part{part}"])


def tune_demo_model(folder: Path) -> None:
    """The model of the demo, with other weights."""
    shutil.copytree(ROOT / "harvest" / "builtin" / "demo", folder)
    weights = load_file(folder / "model.safetensors")
    tuned = {name: 1.01 * tensor for name, tensor in weights.items()}
    save_file(tuned, folder / "model.safetensors", metadata={"format": "pt"})


def write_text(file: Path, number: int) -> None:
    """A hundred documents, none of which is in the file of another number."""
    documents = (f"document {number} {i}: " + f"some words of number {number}, " * i for i in range(100))
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def write_reviews(file: Path) -> None:
    """Thirty labelled texts of each of two classes."""
    lines = (
        {"text": f"a {word} film, number {i}", "label": word} for word in ("good", "bad") for i in range(30)
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_command(words: list[str]) -> None:
    """Run one command of a page at a size that takes a second."""
    typed = words = [small_version(word) for word in words]
    if words[0] == "demo":
        return  # the demo has a test of its own, tests/evaluate/test_end_to_end.py
    settings = SMALL.get(words[0], [])
    if words[0] == "harvest":
        typed = ["harvest", "demo", *words[2:]]
        settings = [*settings, *demo_settings(words)]
    elif words[0] == "evaluate":
        typed = words if "--probe" in words else [*words, "--no-model"]
    elif words[:2] == ["cache", "rm"]:
        typed = [*words, "--yes"]
    elif words[0] == "browse":
        with make_server(words[1:], 0) as server:  # it listens; tests/evaluate/report/test_server.py asks it
            assert server.find("/") is not None
        return
    for setting in settings:
        typed = [*typed, "--set", setting]
    with serve(Judge(models=None)) if "--endpoint" in typed else nullcontext() as judge:
        if judge is not None:  # in place of the server that the page names
            typed[typed.index("--endpoint") + 1] = judge.url
        result = CliRunner().invoke(app, typed)
    assert result.exit_code == 0, f"{shlex.join(typed)}\n{result.output}\n{result.exception!r}"


def small_version(word: str) -> str:
    """A word of a command, with the names of this test's places."""
    word = word.replace("s3://team", bucket()).replace("$USER", "me").replace("$LAYER", "3")
    word = re.sub(r"^/(fast|shared|local)/", "disk/", word)
    word = re.sub(r"^hook=\[resid_post\.6,resid_post\.8\]$", f"hook=[{','.join(DEMO_HOOKS)}]", word)
    word = word.replace("[resid_post.6,tuned:resid_post.6]", "[resid_post.3,tuned:resid_post.3]")
    return re.sub(r"^hook=(resid_post|mlp_in)\.\d+$", r"hook=\1.3", word)


def demo_settings(words: list[str]) -> list[str]:
    """Two hooks where a page harvests several, more tokens where it extends a cache, and a short text."""
    extends = "--extend" in words
    several = extends or any("," in word for word in words if word.startswith("hooks="))
    hooks = DEMO_HOOKS if several else DEMO_HOOKS[:1]
    hooks = MLP_HOOKS if any("mlp_in" in word for word in words) else hooks
    every = any("*" in word for word in words if word.startswith("hooks="))
    settings = [] if every else [f"hooks=[{', '.join(hooks)}]"]
    settings += ["num_tokens=2_500"] if extends else []
    has_text = any(word.startswith("text=") for word in words)
    return settings if has_text else [*settings, "text={kind: files, paths: [text.jsonl]}"]


def bucket() -> str:
    """The URL of a folder that is used as a bucket."""
    return (Path.cwd() / "bucket").as_uri()


@EACH_PAGE
def test_python_blocks_run(page: Path, folder: Path) -> None:
    namespace: dict[str, Any] = {"x": torch.randn(8, 16), "sae": lambda rows: rows, "my_rows": []}
    for block in blocks(page, "python"):
        ast.parse(block.text)
        packages = re.findall(r"^(?:from|import) (\w+)", block.text, re.MULTILINE)
        if not all(importlib.util.find_spec(package) for package in packages):
            continue  # SAELens and others; tests/evaluate/export/test_peers.py runs what loads their files
        if "demo/cache" in block.text:
            run_command(["harvest", "demo", "--out", "demo/cache"])
            names = ["--set", "variants=[{kind: topk, k: 16}]"]
            run_command(["train", "topk", "--cache", "demo/cache", *names, "--out", "demo/runs/demo"])
        if "my_rows" in block.text:
            namespace["my_rows"] = [torch.randn(100, 768)]
        if "read_latents" in block.text:
            run_command(["harvest", "demo", "--out", "demo/cache"])
            run_command(["train", "demo", "--cache", "demo/cache", "--out", "demo/runs/demo"])
            run_command(["evaluate", "demo/runs/demo", "--cache", "demo/cache"])
        # The code is that of our own pages.
        exec(compile(block.text.replace("=4096", "=256"), page.name, "exec"), namespace)
        if "my_rows" in block.text:
            mine = saecache.open_cache("mine")
            assert mine.num_rows("train") + mine.num_rows("heldout") == 100
        if "demo/cache" in block.text:
            assert namespace["codes"].shape == (256, 192)
            assert namespace["error"].shape == namespace["x"].shape
            assert len(namespace["document"]) == 3


@EACH_PAGE
def test_json_blocks_are_json(page: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block.text)


# ---- figures are those of the scripts


def test_benchmarks_page_is_made_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "shared"))
    try:
        render = runpy.run_path(str(ROOT / "benchmarks" / "shared" / "page.py"))["render"]
        assert render() == (ROOT / "docs" / "benchmarks.md").read_text("utf-8"), "run: make bench-docs"
    finally:
        sys.modules.pop("measuring", None)


def test_costs_are_those_of_the_script() -> None:
    table = runpy.run_path(str(ROOT / "docs" / "costs.py"))["table"]()
    assert f"<!-- costs -->\n{table}\n<!-- end of costs -->" in (ROOT / "docs" / "sharing.md").read_text(
        "utf-8"
    )


def test_the_guide_says_when_to_take_each_kind() -> None:
    _, _, after = (ROOT / "docs" / "guide.md").read_text("utf-8").partition("| variant | what it does |")
    rows = [line.split("|")[1] for line in after.split("\n\n")[0].splitlines()[1:]]
    missing = set(VARIANTS) - set(re.findall("`([a-z_]+)`", "".join(rows)))
    assert not missing, f"add {missing} to the guide's table of variants"


def test_devices_page_is_made_from_reports_and_predictions() -> None:
    page = (ROOT / "docs" / "devices.md").read_text("utf-8")
    fill = runpy.run_path(str(ROOT / "docs" / "fill_devices.py"))["fill"]
    assert fill(page) == page, "run: make device-docs"


def test_predictions_by_hand() -> None:
    """The bytes of Adam, the operations of the screen, and a step that is the sum of its phases."""
    module: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "predictions.py"))
    steps, h100 = module["STEPS"], module["GPUS"][1]
    assert steps.keys() == VARIANTS.keys(), (
        "docs/predictions.py predicts a step of every kind: add it to STEPS"
    )
    phases = {phase.name: phase for phase in steps["topk"](24_576)}
    assert phases["Adam"].bytes == (7 * 4 * 2 + 2) * 24_576 * 768
    assert phases["screening product"].tensor == 2 * 4096 * 24_576 * 768
    assert phases["exact pre-activations"].bytes == 2 * 32 * 4096 * 768 * 4
    assert sum(phase.launches for phase in phases.values()) <= 60
    by_hand = phases["Adam"].bytes / (0.85 * 3.35e12) + 6 * 2.5e-6
    assert phases["Adam"].seconds(h100) == pytest.approx(by_hand)
    whole = module["seconds"](steps["topk"], 24_576, h100)
    assert whole == pytest.approx(sum(phase.seconds(h100) for phase in phases.values()))
    for kind, step in steps.items():
        times = [module["seconds"](step, F, gpu) for F in module["LATENTS"] for gpu in module["GPUS"]]
        assert times[1] >= times[2] > 0, f"{kind}: an H200 has the memory's speed more than an H100"
        assert all(more > less for less, more in zip(times[:4], times[4:], strict=True)), kind


def test_cluster_page_is_made_from_predictions() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    module = runpy.run_path(str(ROOT / "docs" / "cluster_predictions.py"))
    assert module["fill"](page) == page, "run: make device-docs"
    assert page.index("**These are predictions, not measurements.**") < page.index("| predicted ms of a TopK")


def test_cluster_predictions_by_hand() -> None:
    """One process exchanges nothing; several exchange the bytes that a test of training counts."""
    module = runpy.run_path(str(ROOT / "docs" / "cluster_predictions.py"))
    one = runpy.run_path(str(ROOT / "docs" / "predictions.py"))
    alone = one["seconds"](one["STEPS"]["topk"], 24_576, one["GPUS"][1])
    assert module["step_seconds"](24_576, 768, 1) == pytest.approx(alone)
    assert module["bytes_of_memory"](24_576, 768, 8) * 8 == (2 * 16 + 2) * 24_576 * 768
    to_each_other = 4 * 4096 * 32 + 8 * 4096 + (4 * 768 + 8 * 3 * 64) * 8
    assert module["exchanged_bytes"](768, 8) == 7 * to_each_other + 4 * 4096 * 768
    large = [module["step_seconds"](1 << 20, 768, processes) for processes in (1, 8)]
    assert large[1] < large[0] / 4
    # Rows shared by 8 nodes: the weights of 8 processes, the moments of 64; as test_rows.py counts the bytes.
    assert module["bytes_of_memory"](1 << 20, 768, 64, 8) == (18 / 8 + 16 / 64) * (1 << 20) * 768
    assert module["row_bytes"](1 << 20, 768, 64, 8) == 2 * 4 * (2 * 768 + 1) * (1 << 20) / 64 * 7
    few, many = (
        module["step_seconds"](F, 768, 64, 8) / module["step_seconds"](F, 768, 64) for F in (24_576, 1 << 24)
    )
    assert few < 0.5 and many > 2


def test_predictions_are_called_so() -> None:
    page = (ROOT / "docs" / "devices.md").read_text("utf-8")
    predicted = page[page.index("## Predicted") :]
    assert "**These are predictions, not measurements.**" in predicted
    heads = re.findall(r"^(\|.*)\n\| --- ", predicted, re.MULTILINE)
    assert len(heads) == 4
    assert all("predicted" in head for head in heads[1:])
    assert "stated by the maker" in heads[0]


def test_sizes_of_the_costs_by_hand() -> None:
    module: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "costs.py"))
    for tokens in module["TOKENS"]:
        for width in module["WIDTHS"]:
            cost = module["costs"](tokens, width)
            assert cost.gigabytes == pytest.approx(tokens * (2 * width + 24) / 1e9, rel=1e-3)
            assert cost.month == pytest.approx(cost.gigabytes * 0.023)
            assert cost.reads == pytest.approx(tokens * 2 * width / 2**28, rel=0.02, abs=1)


def test_policies_are_valid_json_with_the_rights_that_are_used() -> None:
    readers, writers = (json.loads(block.text) for block in blocks(ROOT / "docs" / "sharing.md", "json"))

    def actions(policy: dict[str, Any]) -> set[str]:
        return {action for statement in policy["Statement"] for action in statement["Action"]}

    assert actions(readers) == {"s3:ListBucket", "s3:GetBucketLocation", "s3:GetObject"}
    assert actions(writers) > actions(readers) | {
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }


def test_exit_statuses_of_the_cluster_page() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "cluster.md").read_text("utf-8"), re.MULTILINE)
    assert list(map(int, rows)) == [0, 1, 2, 130]
    assert AccessError.exit_status == 2
