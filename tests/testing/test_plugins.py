"""A kind of SAE that another package brings: it trains, loads, holds the contract, breaks nothing else."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import saecache
from saecache.common.errors import UsageError
from saecache.testing.sparse_rows import write_sparse_cache
from saecache.train import TrainConfig
from saecache.train.variants import VARIANTS, _discover, kind_of
from saecache.train.variants.base.plugins import Kinds

PAGE = Path(saecache.__file__).parent / "docs" / "plugins.md"
VARIANT, CONTRACT, WRITER = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def install(folder: Path, name: str, module: str, source: str, points: dict[str, str]) -> None:
    """What pip leaves behind for a package of one module: the module, and its metadata."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = "".join(f"{kind} = {value}\n" for kind, value in points.items())
    (info / "entry_points.txt").write_text(f"[saecache.variants]\n{lines}")
    (info / "RECORD").write_text("")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with the kind ``wide`` and one that fails when it is imported."""
    install(tmp_path / "site", "wide-saes", "wide_saes", VARIANT, {"wide": "wide_saes:Wide"})
    install(
        tmp_path / "site", "broken-saes", "broken_saes", "import no_such_module", {"broken": "broken_saes:B"}
    )
    return tmp_path / "site"


@pytest.fixture
def command(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a module with these packages installed."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"PYTHONPATH": path, "PYTEST_ADDOPTS": ""}  # which are of the outer pytest
        return subprocess.run(
            [sys.executable, "-m", *map(str, words)], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    return run


def test_a_kind_of_another_package_trains_and_loads(command: Any, tmp_path: Path) -> None:
    write_sparse_cache(tmp_path / "cache")
    (tmp_path / "wide.yaml").write_text(
        "variants: [{kind: wide, k: [4, 6]}, {kind: topk, k: 4}]\n"
        "num_latents: 96\nbatch_rows: 256\nsteps: 4\nlog: {progress: false}\ndevice: cpu\n"
    )
    trained = command("saecache", "train", "wide.yaml", "--cache", "cache", "--out", "run")
    assert trained.returncode == 0, trained.stderr
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_dir()) == [
        "topk_k4",
        "wide_k4",
        "wide_k6",
    ]
    code = (
        "import saecache, torch; sae = saecache.load_sae('run/wide_k6');"
        "print(sae.cfg.kind, int((sae.encode(torch.randn(64, 24)) != 0).sum()))"
    )
    (tmp_path / "load.py").write_text(code)
    assert command("load").stdout.split() == ["wide", str(6 * 64)]
    evaluated = command("saecache", "evaluate", "run", "--cache", "cache", "--no-model")
    assert evaluated.returncode == 0, evaluated.stderr


def test_the_contract_runs_against_it(command: Any, tmp_path: Path) -> None:
    (tmp_path / "test_wide.py").write_text(CONTRACT)
    done = command("pytest", "-q", "-p", "no:cacheprovider", "test_wide.py")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    wrong = CONTRACT.replace("topk(5", "topk(4")
    (tmp_path / "test_wrong.py").write_text(wrong)
    failed = command(
        "pytest", "-q", "-p", "no:cacheprovider", "test_wrong.py", "-k", "definition or gradients"
    )
    assert failed.returncode == 1
    assert "21 failed" in failed.stdout


def test_the_contract_of_caches_runs_against_a_writer_elsewhere(command: Any, tmp_path: Path) -> None:
    (tmp_path / "test_writer.py").write_text(WRITER)
    done = command("pytest", "-q", "-p", "no:cacheprovider", "test_writer.py")
    assert done.returncode == 0, done.stdout
    forgetful = WRITER.replace("rows.batches(10, start", "rows.batches(30, start")  # leaves out ten sequences
    forgetful = forgetful.replace("                writer.commit()\n", "                break\n")
    (tmp_path / "test_forgetful.py").write_text(forgetful)
    failed = command(
        "pytest", "-q", "-p", "no:cacheprovider", "test_forgetful.py", "-k", "every_row or found_in"
    )
    assert failed.returncode == 1, failed.stdout
    assert (
        "FAILED test_forgetful.py::TestMyWriter::test_every_row_is_stored_once_under_every_hook"
        in failed.stdout
    )


def test_kinds_are_listed_and_a_broken_package_is_named(command: Any) -> None:
    listed = command("saecache", "variants", "--json")
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert {
        "kind": "wide",
        "package": "wide_saes",
        "summary": "TopK without ReLU: codes may be negative.",
    } in found["variants"]
    assert {line["kind"] for line in found["variants"]} == {*_discover(), "wide"}
    assert found["problems"].keys() == {"broken"}
    assert (
        "the package broken-saes 1.2 (broken_saes:B), which cannot be used: ModuleNotFoundError"
        in (found["problems"]["broken"])
    )
    lines = command("saecache", "variants")
    assert "wide                   [wide_saes] TopK without ReLU: codes may be negative." in lines.stdout
    assert "not usable: the kind 'broken' comes from the package broken-saes 1.2" in lines.stderr


# ---- within this process


@pytest.fixture
def kinds(site: Path, monkeypatch: pytest.MonkeyPatch) -> Kinds:
    """The package's own registry, with these packages installed and none of them imported."""
    monkeypatch.syspath_prepend(str(site))
    yield VARIANTS
    for kind in VARIANTS.keys() - VARIANTS.built_in:
        del VARIANTS[kind]
    sys.modules.pop("wide_saes", None)


def config(kind: str, **settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {"variants": [{"kind": kind, **settings}], "num_latents": 96, "steps": 2}
    )


def test_packages_are_imported_only_when_their_kind_is_named(kinds: Kinds) -> None:
    assert config("topk").variants[0].kind == "topk"
    assert "wide_saes" not in sys.modules and set(kinds) == kinds.built_in
    wide = config("wide", k=3)
    assert wide.variants[0].run_name == "wide_k3" and "wide_saes" in sys.modules
    assert TrainConfig.model_validate(wide.model_dump(mode="json")) == wide
    assert TrainConfig.model_validate_json(wide.model_dump_json()) == wide


def test_a_broken_package_is_named_where_its_kind_is(kinds: Kinds) -> None:
    with pytest.raises(ValueError, match=r"package broken-saes 1\.2 .*No module named 'no_such_module'"):
        config("broken")
    assert config("topk", k=3).variants[0].run_name == "topk_k3"


def test_an_unknown_kind_is_answered_with_all_kinds(kinds: Kinds) -> None:
    from saecache.common.validation import validate

    with pytest.raises(UsageError, match=r"got 'wido' \(did you mean 'wide'") as refused:
        validate(TrainConfig, {"variants": [{"kind": "wido"}], "num_latents": 9, "steps": 1}, "mine.yaml")
    assert "topk" in str(refused.value) and "broken" not in str(refused.value)


def test_settings_of_the_kind_are_checked_as_those_of_ours(kinds: Kinds) -> None:
    from saecache.common.validation import validate

    values = {"variants": [{"kind": "wide", "kk": 3}], "num_latents": 9, "steps": 1}
    with pytest.raises(UsageError) as refused:
        validate(TrainConfig, values, "mine.yaml")
    assert "variants.0.kk: unknown key (did you mean 'k'?); known keys here: k, kind, name," in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("source", "points", "message"),
    [
        ("Wide = 3", {"odd": "odd:Wide"}, "expected a subclass of Variant, got 3"),
        (VARIANT, {"odd": "odd:Wide"}, "its class is of kind 'wide': the entry point must have that name"),
        (VARIANT, {"odd": "odd:Narrow"}, "AttributeError"),
        (VARIANT.replace("def encode", "def enc0de"), {"wide": "odd:Wide"}, "lacks encode"),
        ("raise SystemError('no GPU here')", {"odd": "odd:Wide"}, "SystemError: no GPU here"),
    ],
)
def test_what_is_wrong_with_a_package_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, points: dict[str, str], message: str
) -> None:
    install(tmp_path / "site", "odd-saes", "odd", source, points)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    kinds = Kinds(_discover(), lambda variant: kind_of(variant, {}))
    with pytest.raises(UsageError, match=message):
        kinds[next(iter(points))]
    assert message in kinds.load_all()[next(iter(points))]
    assert kinds["topk"].model_fields["kind"].default == "topk"
    monkeypatch.delitem(sys.modules, "odd", raising=False)


def test_two_packages_of_one_kind_are_both_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "other-saes", "other_saes", VARIANT, {"wide": "other_saes:Wide"})
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(
        UsageError, match=r"other-saes 1\.2 .* and from .*wide-saes 1\.2|wide-saes .* other-saes"
    ):
        Kinds({}, lambda variant: kind_of(variant, {}))["wide"]


def test_built_in_kinds_win(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "my-topk", "my_topk", VARIANT, {"topk": "my_topk:Wide"})
    monkeypatch.syspath_prepend(str(site))
    kinds = Kinds(_discover(), lambda variant: kind_of(variant, {}))
    assert kinds["topk"].__module__ == "saecache.train.variants.topk"
    assert "'topk' is a kind of saecache itself, which is used" in kinds.load_all()["topk"]
