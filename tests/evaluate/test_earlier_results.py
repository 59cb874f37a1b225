"""Results that hold more than those which replace them are copied first: CE and KL take long to measure."""

from pathlib import Path

import pytest

from saecache.evaluate import run
from saecache.evaluate.results import read_results


@pytest.fixture
def measured(run_dir: Path, cache, model) -> Path:
    """The results file of a run, with CE and KL."""
    run([run_dir], cache, model=model, num_latents=0, show_progress=False)
    return run_dir / "results.json"


def asides(path: Path) -> list[Path]:
    return sorted(path.parent.glob("results.*.json"))


def test_measuring_the_same_again_leaves_no_copy(measured: Path, run_dir: Path, cache, model, capsys) -> None:
    run([run_dir], cache, model=model, num_latents=0)
    assert asides(measured) == [] and "copied" not in capsys.readouterr().err


def test_costs_of_a_model_are_kept_beside_results_without_them(
    measured: Path, run_dir: Path, cache, capsys
) -> None:
    before = read_results(measured)
    run([run_dir], cache, num_latents=0)
    (aside,) = asides(measured)
    assert aside.name.startswith("results.measured-")
    assert read_results(aside) == before
    assert all(sae.language_model is None for sae in read_results(measured).saes)
    names = ", ".join(sae.name for sae in before.saes)
    assert (
        f"results.json held CE and KL of {names}, which were not measured this time: the former file was "
        f"copied to {aside.name}"
    ) in capsys.readouterr().err
    run([run_dir], cache, num_latents=0)  # holds no less than those before it
    assert asides(measured) == [aside]


def test_saes_that_are_not_measured_again_are_kept_beside(
    measured: Path, run_dir: Path, cache, model, capsys
) -> None:
    before = read_results(measured)
    run([run_dir / "topk_k4" / "sae"], cache, model=model, out=measured, num_latents=0)
    (aside,) = asides(measured)
    assert read_results(aside) == before
    others = ", ".join(sae.name for sae in before.saes if sae.name != "topk_k4")
    assert f"results.json held all figures of {others}, which" in capsys.readouterr().err
