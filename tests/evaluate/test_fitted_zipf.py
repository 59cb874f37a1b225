"""The law that an evaluation fits becomes the law of another training."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import UsageError
from saecache.evaluate import run
from saecache.evaluate.results import Results, read_fitted_zipf
from saecache.train import load_sae

from .conftest import HOOK, LATENTS


@pytest.fixture
def results(run_dir: Path, cache) -> Results:
    return run([run_dir], cache, num_latents=0, show_progress=False)


def test_a_training_takes_the_law_of_an_evaluation(
    run_dir: Path, cache, results: Results, tmp_path: Path
) -> None:
    text = f"""
        hook: {HOOK}
        num_latents: {LATENTS}
        batch_rows: 64
        steps: 2
        variants: [{{kind: feature_choice, k: 4, zipf: {{alpha: 1.0, rounding: carry}}}}]
    """
    (tmp_path / "config.yaml").write_text(text)
    command = [
        "train",
        str(tmp_path / "config.yaml"),
        "--cache",
        str(cache.path),
        "--out",
        str(tmp_path / "run"),
    ]
    law = f"{run_dir / 'results.json'}:batch_topk_k6"
    result = CliRunner().invoke(app, [*command, "--zipf", law])
    assert result.exit_code == 0, result.output
    (wanted,) = (found.zipf.linear for found in results.saes if found.name == "batch_topk_k6")
    found = load_sae(tmp_path / "run").cfg.variant.zipf
    assert (found.alpha, found.beta) == (wanted.alpha, wanted.beta) != (1.0, 6.8)


def test_which_law_must_be_clear(run_dir: Path, results: Results, tmp_path: Path) -> None:
    path = run_dir / "results.json"
    with pytest.raises(UsageError, match=r"holds 3 SAEs; name one of them, as .*:NAME: batch_topk_k6, "):
        read_fitted_zipf(str(path))
    with pytest.raises(UsageError, match="holds no SAE 'topk_k5'"):
        read_fitted_zipf(f"{path}:topk_k5")
    with pytest.raises(UsageError, match="no results at"):
        read_fitted_zipf(str(tmp_path / "nothing.json"))
    one = results.model_copy(update={"saes": [results.saes[0].model_copy(update={"zipf": None})]})
    path.write_text(one.model_dump_json())
    with pytest.raises(UsageError, match=f"no Zipf law was fitted to {one.saes[0].name}"):
        read_fitted_zipf(str(path))
