"""A judge's explanations in the page: in the table, in the list, beside the latent, and what is unique."""

from pathlib import Path

import pytest

from saecache.evaluate import run, write_report
from saecache.evaluate.report.server import make_server
from saecache.evaluate.results import (
    BestMatch,
    Interpretation,
    JudgeScore,
    LatentInterpretation,
    MeanScore,
    Results,
    Uniqueness,
    write_results,
)

from .browser import CHROMIUM, Page
from .test_page import HOSTILE

TEXTS = {20: "names of animals", 7: f"numbers {HOSTILE}", 31: None}
SCORES = {20: 0.91, 7: 0.62, 31: None}


def explained() -> Interpretation:
    latents = []
    for index, text in TEXTS.items():
        score = None
        if SCORES[index] is not None:
            score = JudgeScore(
                balanced_accuracy=SCORES[index],
                true_positive_rate=1.0,
                true_negative_rate=1.0,
                strata=[],
                answered=40,
                unanswered=2,
                interval=(0.5, 0.95),
            )
        note = "too few windows for calibration" if index == 20 else None
        latents.append(
            LatentInterpretation(
                index=index, density=0.1, num_windows=50, explanation=text, detection=score, note=note
            )
        )
    return Interpretation(
        judge="judge",
        prompts_sha256="",
        settings={},
        rows=1,
        windows=1,
        alive=3,
        too_few_windows=0,
        skipped=[],
        unanswered={},
        detection=MeanScore(mean=0.765, strata=[], num_latents=2, unanswered=2, interval=(0.7, 0.8)),
        fuzzing=None,
        calibration=None,
        latents=latents,
    )


@pytest.fixture
def judged(run_dir: Path, cache) -> Path:
    """A run whose SAE topk_k4 was explained, and compared with batch_topk_k6."""
    results = run([run_dir], cache, num_contexts=4, show_progress=False)
    match = {"latent": 20, "match": 3, "similarity": 0.123, "decoder": 0.1, "text": 0.1}
    unique = Uniqueness(
        a="topk_k4",
        b="batch_topk_k6",
        hook="resid_post.0",
        encoder="e",
        num_a=3,
        num_b=3,
        mean_similarity=0.5,
        matches=[BestMatch(**match, nearest_cosine=0.321)],
    )
    saes = [
        sae.model_copy(update={"interpretation": explained() if sae.name == "topk_k4" else None})
        for sae in results.saes
    ]
    write_results(
        Results.model_validate(
            results.model_copy(update={"saes": saes, "uniqueness": [unique]}).model_dump()
        ),
        run_dir / "results.json",
    )
    return run_dir


HEADING = "document.querySelector('.card h3')?.textContent"
LISTED = "[...document.querySelectorAll('.browser .row .n')].map(n => Number(n.textContent))"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
@pytest.mark.parametrize("served", [False, True])
def test_explanations_are_shown_searched_and_sorted(judged: Path, served: bool, tmp_path: Path) -> None:
    def control(number: int, value: str) -> None:
        page.evaluate(
            f"(() => {{ const c = document.querySelectorAll('.tools select')[{number}];"
            f"c.value = '{value}'; c.dispatchEvent(new Event('change')); }})()"
        )

    server = make_server([judged], 0) if served else None
    if server is not None:
        import threading

        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    place = write_report([judged], tmp_path / "r.html") if server is None else server.url
    try:
        with Page(place, tmp_path / "profile", fragment="latent-2-20") as page:
            page.until("document.documentElement.dataset.opened === 'true'")
            page.until(f"{HEADING} === 'Latent 20'")
            said = page.evaluate("document.querySelector('.card .explanation').innerText")
            assert said.split("\n")[0] == "names of animals"
            assert "detection 0.910" in said and "too few windows for calibration" in said
            assert "95 %: 0.500 to 0.950; 40 windows answered, 2 not" in page.evaluate(
                "document.querySelector('.explanation .chips span').title"
            )
            control(0, "judge")
            page.until(f"{LISTED}.length === 2")
            assert sorted(page.evaluate(LISTED)) == [7, 20]
            control(2, "best")
            page.until(f"{LISTED}[0] === 20")
            control(2, "worst")
            page.until(f"{LISTED}[0] === 7")
            page.until(f"{HEADING} === 'Latent 7'")
            assert HOSTILE in page.evaluate("document.querySelector('.explanation p').textContent")
            assert HOSTILE in page.evaluate("document.querySelector('.row .said').textContent")
            page.evaluate("location.hash = '#latent-2-31'")
            page.until(f"{HEADING} === 'Latent 31'")
            assert "no usable explanation" in page.evaluate(
                "document.querySelector('.explanation').innerText"
            )
            page.evaluate("document.querySelector('#unique details').open = true")
            page.evaluate("document.querySelector('#unique a').click()")
            page.until(f"{HEADING} === 'Latent 20'")
            assert page.console == [] and "broken" not in page.evaluate("document.title")
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def test_the_page_without_its_script_holds_scores_and_unique_latents(judged: Path, tmp_path: Path) -> None:
    text = write_report([judged], tmp_path / "r.html").read_text("utf-8")
    assert '<td class="" data-value="0.765" title="95 %: 0.7 to 0.8">0.765</td>' in text
    assert ">detection</button>" in text and ">fuzzing</button>" not in text
    unique = text.partition('<section id="unique">')[2].partition("</section>")[0]
    assert "topk_k4, not in batch_topk_k6" in unique and "mean similarity 0.500" in unique
    assert '<a href="#latent-2-20">20</a></th><td class="text wrapped">names of animals</td>' in unique
    assert "<td>0.123</td><td>0.321</td>" in unique


def test_results_without_a_judge_have_none_of_it(run_dir: Path, cache, tmp_path: Path) -> None:
    run([run_dir], cache, num_latents=0, show_progress=False)
    text = write_report([run_dir], tmp_path / "r.html").read_text("utf-8")
    assert ">detection</button>" not in text and 'id="unique"' not in text
