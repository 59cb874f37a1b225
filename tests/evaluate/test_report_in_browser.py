"""The report in a real browser: drawn without a complaint, usable by keyboard, unmoved by hostile text."""

import json
from pathlib import Path

import pytest

from saecache.evaluate import run, write_report

from .browser import CHROMIUM, Page
from .test_report import HOSTILE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")

TOKENS = ["plain", " word", "\n", "    ", "\t", "", "a\r\n  b", "\u202egnol", "\x00", "é", "�", HOSTILE]


@pytest.fixture
def report(run_dir, cache, model, tmp_path) -> Path:
    """Names, tokens and facts of the worst kind."""
    decode = lambda token: TOKENS[token % len(TOKENS)]  # noqa: E731
    run([run_dir], cache, model=model, decode_token=decode, num_contexts=6, show_progress=False)
    path = run_dir / "results.json"
    values = json.loads(path.read_text())
    values["cache"]["identity"]["model"]["name"] = HOSTILE
    values["saes"][0]["name"] += HOSTILE
    values["saes"][1]["kind"] += HOSTILE
    path.write_text(json.dumps(values))
    return write_report([run_dir], tmp_path / "report.html")


@pytest.fixture
def page(report, tmp_path):
    with Page(report, tmp_path / "profile") as page:
        page.settle()
        yield page
        assert page.console == []
        assert "broken" not in page.evaluate("document.title")
        assert page.evaluate("document.images.length") == 0


def test_every_figure_is_drawn_with_axes_and_series(page) -> None:
    assert page.evaluate("document.documentElement.dataset.drawn") == "11"
    figures = page.evaluate("""[...document.querySelectorAll("figure")].map(f => ({
        title: f.querySelector("b").textContent, series: f.querySelectorAll("g.series").length,
        ticks: [...f.querySelectorAll("svg text")].map(t => t.textContent),
        wrong: f.querySelector("svg").outerHTML.match(/NaN|undefined|Infinity/),
    }))""")
    assert [figure["title"] for figure in figures] == [
        "L0 and FVU",
        "L0 and CE loss recovered",
        "FVU by layer",
        "CE loss recovered by layer",
        "FVU",
        "L0",
        "Dead latents",
        "Density by rank",
        "Density histogram",
        "Active latents per token",
        "Cumulative",
    ]
    for figure in figures:
        assert figure["series"] == 3
        assert len(figure["ticks"]) >= 6
        assert figure["wrong"] is None, figure
    assert page.evaluate("document.querySelectorAll('.legend').length") == 5


def test_the_table_holds_the_results_and_sorts(page, run_dir) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    column = (
        "[...document.querySelector('table.results tbody').rows].map(r => r.cells[%d].textContent.trim())"
    )
    heads = page.evaluate("[...document.querySelectorAll('table.results thead th')].map(h => h.textContent)")
    fvu = heads.index("FVU")
    assert page.evaluate(column % 0) == [sae["name"] for sae in results["saes"]]
    assert page.evaluate(column % fvu) == [f"{sae['normalized']['fvu']:.4f}" for sae in results["saes"]]
    head = f"document.querySelectorAll('table.results thead button')[{fvu}]"
    for descending in (False, True):
        page.evaluate(f"{head}.click()")
        shown = [float(text) for text in page.evaluate(column % fvu)]
        assert shown == sorted(shown, reverse=descending)
    assert page.evaluate(f"{head}.parentNode.getAttribute('aria-sort')") == "descending"


def test_pointer_and_arrow_keys_tell_values(page, run_dir) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    page.evaluate("document.querySelector('#training-figures svg[role=img]').focus({preventScroll: true})")
    page.press("ArrowRight")
    assert page.evaluate("document.querySelector('#tip').innerText").startswith("64 rows")
    page.press("ArrowRight")
    assert page.evaluate("document.querySelector('#tip').innerText").startswith("128 rows")
    assert page.evaluate("document.querySelector('#spoken').textContent").startswith("128 rows")
    page.press("Escape")
    assert page.evaluate("document.querySelector('#tip').hidden")
    place = page.evaluate("""(() => {
        document.querySelector("#pareto").scrollIntoView({behavior: "instant"});
        const box = document.querySelector("#pareto-figures g.series path").getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    })()""")
    page.settle()
    page.point_at(*place)
    told = page.evaluate("document.querySelector('#tip').innerText")
    assert results["saes"][0]["name"] in told
    assert f"{results['saes'][0]['normalized']['fvu']:.4g}" in told


def test_an_sae_can_be_hidden_everywhere(page) -> None:
    page.evaluate("document.querySelectorAll('#density .legend button')[1].click()")
    page.settle()
    shown = "[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('g.series').length)"
    assert page.evaluate(shown) == [2] * 11
    assert page.evaluate("document.querySelectorAll('.legend [aria-pressed=false]').length") == 5
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
    for i in (0, 2):
        page.evaluate(f"document.querySelectorAll('#density .legend button')[{i}].click()")
    page.settle()
    assert page.evaluate(shown) == [0] * 11
    assert "nothing to show" in page.evaluate("document.querySelector('figure svg').textContent")


def test_tokens_are_shown_by_strength_and_what_cannot_be_seen_by_its_name(page, run_dir) -> None:
    latent = json.loads((run_dir / "results.json").read_text())["saes"][0]["latents"][0]
    page.evaluate("document.querySelector('.card .more').click()")
    shown = page.evaluate("""[...document.querySelector(".card").querySelectorAll(".context")].map(c =>
        [...c.querySelectorAll(".t")].map(t => [t.textContent, t.style.background, t.className]))""")
    visible = ["plain", " word", "↵", "····", "→", "∅", "a↵··b", "‹202e›gnol", "‹0000›", "é", "�", HOSTILE]
    assert len(shown) == len(latent["contexts"]) == 6
    for context, spans in zip(latent["contexts"], shown, strict=True):
        for i, (text, background, css) in enumerate(spans):
            activation = context["activations"][i]
            assert text == visible[TOKENS.index(context["tokens"][i])]
            assert ("peak" in css) == (i == context["peak"])
            assert ("none" in css) == (activation is None)
            strength = (activation or 0) / latent["max_activation"]
            expected = f"{0.1 + 0.6 * strength:.3f}" if activation else ""
            assert expected in background
    page.evaluate("document.querySelector('.context .words').focus({preventScroll: true})")
    page.press("ArrowRight")
    told = page.evaluate("document.querySelector('#tip').innerText")
    assert f"{latent['contexts'][0]['activations'][latent['contexts'][0]['peak']]:.4g}" in told
    assert f"document {latent['contexts'][0]['document']}" in told


def test_latents_of_every_sae_are_reached_by_keyboard(page, run_dir) -> None:
    saes = json.loads((run_dir / "results.json").read_text())["saes"]
    page.evaluate("document.querySelector('.tabs button').focus()")
    headings = "[...document.querySelectorAll('.card h3')].map(h => h.textContent)"
    for sae in (*saes, saes[0]):
        assert page.evaluate(headings) == [f"Latent {latent['index']}" for latent in sae["latents"]]
        page.press("ArrowRight")
    page.evaluate("""(() => { const search = document.querySelector("input[type=search]");
        search.value = "no such text"; search.dispatchEvent(new Event("input")); })()""")
    assert page.evaluate(headings) == []


def test_dark_and_narrow(page) -> None:
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.evaluate("document.getElementById('theme').click()")
    page.settle()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    for width in (360, 800, 1900):
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        page.settle()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('figure svg').getBoundingClientRect().width") > 250


def test_a_grid_gives_each_family_one_colour(run_dir, report, tmp_path) -> None:
    path = run_dir / "results.json"
    values = json.loads(path.read_text())
    sae = values["saes"][2]
    values["saes"] = [
        {**sae, "name": f"{kind}_{k}", "kind": kind, "codes": {**sae["codes"], "l0": k}}
        for k in (4, 8, 16, 32)
        for kind in ("a", "b", "c")
    ]
    path.write_text(json.dumps(values))
    with Page(write_report([run_dir], report), tmp_path / "profile") as page:
        page.settle()
        markers = "[...document.querySelectorAll('#pareto-figures figure:first-child g.series path')]"
        fills = page.evaluate(f"{markers}.map(p => p.getAttribute('fill'))")
        assert [len(set(fills[i::3])) for i in range(3)] == [1, 1, 1]
        assert len(set(fills)) == 3
        lines = (
            "[...document.querySelector('#pareto-figures svg[role=img]').querySelectorAll(':scope > path')]"
        )
        strokes = page.evaluate(f"{lines}.slice(1).map(p => p.getAttribute('stroke'))")  # after the axes
        assert sorted(strokes) == sorted(set(fills))
        assert page.console == []


def test_figures_are_saved_as_svg_and_csv(page, run_dir) -> None:
    page.evaluate("""(() => {
        window.saved = [];
        URL.createObjectURL = blob => { window.saved.push(blob.text()); return "about:blank"; };
        HTMLAnchorElement.prototype.click = function () { window.saved.push(this.download); };
        document.querySelectorAll("#pareto-figures figcaption button").forEach(b => b.click());
    })()""")
    svg, name, csv, csv_name, *_ = page.evaluate("Promise.all(window.saved)")
    assert name == "l0-and-fvu.svg"
    assert (
        page.evaluate(
            f"new DOMParser().parseFromString({json.dumps(svg)}, 'image/svg+xml').documentElement.tagName"
        )
        == "svg"
    )
    assert "var(" not in svg
    results = json.loads((run_dir / "results.json").read_text())
    assert csv_name == "l0-and-fvu.csv"
    for line, sae in zip(csv.splitlines()[1:], results["saes"], strict=True):
        assert [float(v) for v in line.split(",")[-2:]] == [sae["codes"]["l0"], sae["normalized"]["fvu"]]
        quoted = sae["name"].replace('"', '""')
        assert line.startswith(f'"{quoted}",')
