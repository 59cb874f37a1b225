"""SAEs of other libraries in the commands: evaluated, exported and imported as our own are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.evaluate import run
from saecache.evaluate.export import export_sae
from saecache.evaluate.targets import choose_output
from saecache.store import CacheWriter, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.train import load_sae

from ..test_cli import saecache
from ..train.foreign.layouts import D, layouts, rows

HOOK = "resid_post.3"
SETTINGS = {"num_latents": 0, "device": "cpu", "show_progress": False}


def make_cache(path: Path, hook: str = HOOK, width: int = D) -> ActivationCache:
    identity = {"model": {"name": "toy"}, "source": hook}
    with CacheWriter(path, hooks={hook: width}, identity=identity, heldout_fraction=0.3) as writer:
        x = rows(1000)
        writer.write_rows({hook: x if width == D else torch.cat([x, x], 1)})
    return open_cache(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return make_cache(tmp_path_factory.mktemp("foreign") / "cache")


@pytest.mark.parametrize(
    "name", ["saelens_layer_norm", "saelens_constant_norm", "dictionary_nested", "sparsify"]
)
def test_a_folder_of_another_library_is_evaluated_as_it_is(
    name: str, cache: ActivationCache, tmp_path: Path
) -> None:
    layout = layouts()[name]
    results = run([layout.write(tmp_path)], cache, out=tmp_path / "results.json", **SETTINGS)
    (result,) = results.saes
    x = cache.rows(HOOK, np.arange(cache.num_rows("heldout")), split="heldout", normalization="none")
    features, reconstruction = layout.forward(x)
    error, spread = (reconstruction - x).square().sum(), (x - x.mean(0)).square().sum()
    assert result.raw.fvu == pytest.approx(float(error / spread), rel=1e-4)
    assert result.codes.l0 == pytest.approx(float((features != 0).float().sum(1).mean()), rel=1e-3)
    model = "not named" if name == "sparsify" else "toy"
    assert any(f"Its model is {model}, and must be" in warning for warning in results.warnings)


def test_results_do_not_go_into_a_folder_of_another_library(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder of sparsify, and nothing is written into it.* --out"):
        choose_output([layouts()["sparsify"].write(tmp_path)])


def test_the_cache_must_have_the_hook_and_the_width(cache: ActivationCache, tmp_path: Path) -> None:
    folder = layouts()["saelens_topk"].write(tmp_path / "theirs")
    out = tmp_path / "results.json"
    with pytest.raises(
        UsageError, match=r"resid_pre.4 is the same activation: saecache import .* --hook resid_pre.4"
    ):
        run([folder], make_cache(tmp_path / "pre", "resid_pre.4"), out=out, **SETTINGS)
    with pytest.raises(UsageError, match=r"has mlp_out.3. If one of them is the same .* --hook NAME --out"):
        run([folder], make_cache(tmp_path / "mlp", "mlp_out.3"), out=out, **SETTINGS)
    with pytest.raises(UsageError, match=r"expects rows of width 12; .* holds width 24"):
        run([folder], make_cache(tmp_path / "wide", width=2 * D), out=out, **SETTINGS)
    assert not out.exists()


def test_import_names_the_hook_as_the_cache_does(tmp_path: Path) -> None:
    folder = layouts()["saelens_average_norm"].write(tmp_path / "theirs")
    out = tmp_path / "ours"
    refused = saecache("import", folder, "--out", out)
    assert refused.returncode == 2 and "scaling_factor" in refused.stderr and not out.exists()
    done = saecache(
        "import", folder, "--out", out, "--hook", "resid_pre.4", "--scaling-factor", "0.4", "--json"
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["format"], facts["kind"], facts["hook"], facts["width"]) == (
        "saelens",
        "relu",
        "resid_pre.4",
        D,
    )
    features, _ = layouts()["saelens_average_norm"].forward(rows())
    assert torch.allclose(load_sae(out).encode(rows(), input="raw"), features, atol=1e-5)
    results = run([out], make_cache(tmp_path / "pre", "resid_pre.4"), out=tmp_path / "r.json", **SETTINGS)
    assert results.saes[0].hook == "resid_pre.4"
    again = saecache("import", folder, "--out", out, "--scaling-factor", "1")
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr


def test_import_refuses_what_is_no_sae_of_another_library(tmp_path: Path) -> None:
    refused = saecache("import", tmp_path, "--out", tmp_path / "ours")
    assert refused.returncode == 2 and "no SAE of saelens, sparsify" in refused.stderr
    folder = layouts()["sparsify"].write(tmp_path)
    refused = saecache("import", folder, "--out", tmp_path / "ours", "--scaling-factor", "2")
    assert refused.returncode == 2 and "has no effect on an SAE of sparsify" in refused.stderr


@pytest.mark.parametrize("format_name", ["saelens", "dictionary_learning"])
def test_from_one_library_to_another(format_name: str, cache: ActivationCache, tmp_path: Path) -> None:
    layout = layouts()["dictionary_jumprelu"]
    export = export_sae(layout.write(tmp_path), format_name, tmp_path / "out", cache=cache)
    assert export.exact and max(c.feature for c in export.comparisons) < 1e-5
    features, reconstruction = layout.forward(rows())
    sae = load_sae(tmp_path / "out")
    assert torch.allclose(sae.encode(rows(), input="raw"), features, atol=1e-5)
    assert torch.allclose(sae(rows(), input="raw"), reconstruction, atol=1e-5)
