"""What a judge was paid for stays when SAEs are measured again, or is found beside the results."""

import json
from pathlib import Path

import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import run as evaluate
from saecache.evaluate.results import Results, read_results
from saecache.train import load_sae

from .conftest import Ask

QUICK = {
    "calibration": None,
    "latents": [0, 1, 2],
    "fuzzing": "none",
    "embeddings": {"kind": "endpoint", "model": "reader-1"},
}


def results_of(folder: Path) -> Results:
    return read_results(folder / "results.json")


def test_measuring_again_keeps_explanations(ask: Ask, run_folder: Path, word_cache) -> None:
    ask("plain", "mixed", **QUICK)
    before = results_of(run_folder)
    again = evaluate([run_folder], word_cache, num_latents=0, max_rows=2000, show_progress=False)
    assert again == results_of(run_folder)
    assert {sae.name: sae.interpretation for sae in again.saes} == {
        sae.name: sae.interpretation for sae in before.saes
    }
    assert all(sae.interpretation is not None and sae.rows == 2000 for sae in again.saes)
    assert again.uniqueness == before.uniqueness != []
    assert "judge" in again.definitions
    assert not again.warnings
    assert [path.name for path in run_folder.glob("*.json")] == ["results.json"]


def test_explanations_of_a_changed_sae_are_set_aside(ask: Ask, run_folder: Path, word_cache, capsys) -> None:
    ask("plain", "mixed", **QUICK)
    before = results_of(run_folder)
    sae = load_sae(run_folder / "mixed" / "sae")
    sae.b_enc += 0.01
    sae.save(run_folder / "mixed" / "sae")
    with pytest.raises(UsageError, match=r"mixed.*has other weights than when .*results\.json was measured"):
        ask("mixed", **QUICK)
    again = evaluate([run_folder], word_cache, num_latents=0)
    by_name = {sae.name: sae.interpretation for sae in again.saes}
    assert by_name["plain"] is not None and by_name["mixed"] is None
    assert again.uniqueness == []  # of a pair of which one has changed
    (aside,) = run_folder.glob("results.judged-*.json")
    assert read_results(aside) == before
    assert (
        f"mixed (the SAE has changed) is not in these results. It stays in {aside.name}"
        in (again.warnings[0])
    )
    said = capsys.readouterr().err
    assert "kept what the judge said of plain" in said and again.warnings[0] in said
    assert ask("mixed", **QUICK).results is not None  # the new one can be explained now


def test_explanations_of_saes_that_are_not_measured_are_set_aside(
    ask: Ask, run_folder: Path, word_cache
) -> None:
    ask("plain", **QUICK)
    before = results_of(run_folder)
    out = run_folder / "results.json"
    for number in (1, 2):
        evaluate([run_folder / "mixed" / "sae"], word_cache, out=out, num_latents=0, show_progress=False)
        assert "plain (it was not measured this time)" in results_of(run_folder).warnings[0]
        asides = list(run_folder.glob("results.judged-*.json"))
        assert len(asides) == number  # each file has a name of its own
        assert all(read_results(aside) == before for aside in asides)
        out.write_bytes(asides[0].read_bytes())


def test_results_without_hashes_are_compared_by_their_config(ask: Ask, run_folder: Path, word_cache) -> None:
    ask("plain", **QUICK)
    path = run_folder / "results.json"
    values = json.loads(path.read_text())
    for sae in values["saes"]:
        del sae["weights_sha256"]
    path.write_text(json.dumps(values))
    ask("plain", **QUICK)  # they can be explained further
    again = evaluate([run_folder], word_cache, num_latents=0, show_progress=False)
    assert [sae.interpretation is not None for sae in again.saes if sae.name == "plain"] == [True]
    del values["saes"][0]["config"]["training"]
    values["saes"][0] |= {"interpretation": values["saes"][1]["interpretation"]}
    path.write_text(json.dumps(values))
    again = evaluate([run_folder], word_cache, num_latents=0, show_progress=False)
    assert [sae.interpretation is not None for sae in again.saes] == [False, True]


def test_an_interpretation_that_says_less_leaves_a_copy(ask: Ask, run_folder: Path) -> None:
    said: list[str] = []
    ask("plain", **QUICK, say=said.append)
    before = results_of(run_folder)
    ask("plain", **QUICK, say=said.append)
    assert list(run_folder.glob("results.judged-*")) == [] and not any("leave out" in text for text in said)
    done = ask("plain", **QUICK | {"detection": False, "fuzzing": "active", "latents": [0]})
    (aside,) = run_folder.glob("results.judged-*.json")
    assert read_results(aside) == before
    (warning,) = done.warnings
    assert "leave out detection of plain, 2 explained latents of plain, which the results held" in warning
    assert warning.endswith(f"the former file was copied to {aside.name}")


def test_a_file_that_cannot_be_read_is_not_destroyed(run_folder: Path, word_cache, capsys) -> None:
    path = run_folder / "results.json"
    path.write_text('{"format_version": 2}')
    evaluate([run_folder], word_cache, num_latents=0)
    assert (run_folder / "results.unreadable.json").read_text() == '{"format_version": 2}'
    assert "It was moved to results.unreadable.json" in capsys.readouterr().err


def test_an_evaluation_during_an_interpretation_is_not_undone(
    ask: Ask, run_folder: Path, word_cache, judge
) -> None:
    def answer(prompt: str) -> str:
        if not measured:
            evaluate([run_folder], word_cache, num_latents=0, max_rows=2000, show_progress=False)
            measured.append(True)
        return 'EXPLANATION: one of ["babb"]'

    measured: list[bool] = []
    judge.explain = answer
    ask("plain", endpoint={"concurrency": 1}, **QUICK)
    found = results_of(run_folder)
    assert [sae.rows for sae in found.saes] == [2000, 2000]
    assert [sae.interpretation is not None for sae in found.saes] == [False, True]
