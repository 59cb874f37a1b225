"""The terminal's table, the report and the model card show every figure of the list."""

from pathlib import Path

import pytest

from saecache.evaluate import format_table, run
from saecache.evaluate.report.comparison import ReportEntry, make_table
from saecache.evaluate.results import (
    AbsorptionResult,
    Interpretation,
    MeanScore,
    ProbingAccuracy,
    ProbingResult,
    Results,
)
from saecache.evaluate.table_figures import TABLE_FIGURES, choose_figures
from saecache.publishing.card import make_card
from saecache.train import load_sae

ALWAYS = {"latents", "L0", "FVU", "FVU raw", "MSE", "cosine", "alive", "dead", ">10 %"}
WITH_MODEL = {"CE recovered", "KL score", "top-1"}
WITH_INTERVAL = {"L0", "FVU", "FVU raw", "MSE", "cosine", *WITH_MODEL, "absorbed", "detection", "fuzzing"}


def texts_and_judge() -> dict[str, object]:
    """What probing, absorption and a judge add to the results of an SAE."""
    one, five, every = (ProbingAccuracy(accuracy=value, by_class=[]) for value in (0.61, 0.62, 0.63))
    probing = ProbingResult(
        data="d",
        classes=[],
        train_texts=9,
        test_texts=9,
        sparse={"1": one, "5": five},
        dense=every,
        model_sparse={},
        model_dense=every,
    )
    absorption = AbsorptionResult(
        num_words=9, absorption_fraction=0.321, intervals={"absorption_fraction": (0.3, 0.34)}
    )
    detection, fuzzing = (
        MeanScore(mean=mean, strata=[], num_latents=2, unanswered=0, interval=(mean - 0.1, mean + 0.1))
        for mean in (0.71, 0.72)
    )
    judged = Interpretation(
        judge="j",
        prompts_sha256="0",
        settings={},
        rows=9,
        windows=9,
        alive=9,
        too_few_windows=0,
        skipped=[],
        unanswered={},
        detection=detection,
        fuzzing=fuzzing,
        calibration=None,
        latents=[],
    )
    return {"probing": [probing], "absorption": absorption, "interpretation": judged}


@pytest.fixture
def measured(run_dir: Path, cache, model) -> Results:
    """The results of one SAE of which everything was measured."""
    results = run([run_dir], cache, model=model, show_progress=False)
    sae = next(sae for sae in results.saes if sae.name == "topk_k4")
    return results.model_copy(update={"saes": [sae.model_copy(update=texts_and_judge())], "overlap": []})


def test_every_figure_is_shown_in_each_place(measured: Results, run_dir: Path) -> None:
    (sae,) = measured.saes
    found = {figure.label: figure.read(sae) for figure in TABLE_FIGURES}
    assert [label for label, one in found.items() if one.value is None] == []
    assert {label for label, one in found.items() if one.interval} == WITH_INTERVAL
    shown = {figure.label: figure.show(found[figure.label].value) for figure in TABLE_FIGURES}

    columns, (cells,) = make_table([ReportEntry(name=sae.name, result=sae, training=None)])
    report = {column.label: cell.text for column, cell in zip(columns, cells, strict=True)}
    assert report == {"SAE": sae.name, "kind": sae.kind} | shown

    cfg = load_sae(run_dir / sae.name).cfg
    card = make_card(cfg, "hf://me/sae", result=sae, results=measured, recipe=None, version="1")
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")]
    assert {row[0].removeprefix("| "): row[1] for row in rows}.items() >= shown.items()

    heads, _, values, *_ = format_table(measured).splitlines()
    in_terminal = {f.short or f.label: shown[f.label] for f in TABLE_FIGURES if f.in_terminal}
    assert heads.split() == ["SAE", "kind", *" ".join(in_terminal).split()]
    assert values.split() == [sae.name, sae.kind, *" ".join(in_terminal.values()).split()]


def test_optional_figures_are_left_out_where_no_sae_has_them(measured: Results) -> None:
    (sae,) = measured.saes
    nothing = {"zipf": None, "collapse": None, "language_model": None, "interpretation": None}
    bare = sae.model_copy(update=nothing | {"probing": [], "absorption": None})
    bare = bare.model_copy(update={"codes": sae.codes.model_copy(update={"dying": None})})
    assert {figure.label for figure in choose_figures([bare])} == ALWAYS | WITH_MODEL
    assert choose_figures([bare, sae]) == list(TABLE_FIGURES)
